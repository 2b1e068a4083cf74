"""The fault harness: what is promised in ``docs/guarantees.md``, tried by force.

``python -m benchmarks.faults`` kills stages, breaks disks and stores, starves, poisons and watches
them, on the smallest phantom set, and writes the matrix of stages and faults.
"""
