"""The fault matrix: every fault at every stage of a run, a reader beside it, one command after it.

`python -m benchmarks.matrix` (``make matrix``) makes a small SIMULATED cube of one day, and then, over and over, a run
that adds the second day and is disturbed. What each run, its readers and its recovery did is compared with an
undisturbed run, value for value.
"""
