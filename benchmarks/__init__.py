"""What is measured, and how: `python -m benchmarks NAME` writes benchmarks/results/NAME.json."""
