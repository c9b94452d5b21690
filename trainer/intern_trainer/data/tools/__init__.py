"""What `intern-trainer data` does: look at shards, find what is wrong in them, make them.

One file a verb. `pool.py` spreads work over processes, `pieces.py` cuts sources into it.
"""
