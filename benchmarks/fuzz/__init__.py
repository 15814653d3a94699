"""Mutation fuzz of the readers: damaged files go in; a one-line error or values that trace to their lines come out.

``python -m benchmarks.fuzz [NETWORK ...] [--inputs N] [--seed S] [--processes P]``. docs/reference/fuzzing.md says what
is mutated, what the oracle checks, and what was measured.
"""
