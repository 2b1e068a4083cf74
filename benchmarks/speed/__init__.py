"""MedVQ's speed and memory against MONAI, vector-quantize-pytorch, plain loops and the processor.

All of a comparison run in one process, in turn, on the same data; a figure is a ratio of medians.
``python -m benchmarks.speed`` writes ``docs/SPEED.md`` with its plot (``docs/SPEED-cuda.md`` on a
GPU), with ``--quick`` nothing.
"""
