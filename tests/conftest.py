"""Triton kernels run in the interpreter here, on the CPU. Triton asks when it is imported, so this comes before all."""

import os

os.environ["TRITON_INTERPRET"] = "1"
