"""MedVQ's speed and memory against MONAI, vector-quantize-pytorch, plain loops and the processor.

All of a comparison run in one process, in turn, on the same data; a figure is a ratio of medians.
``python -m benchmarks.speed`` writes ``docs/results/speed.md`` (``speed-cuda.md`` on a GPU); with
``--quick`` or ``--only NAME`` it writes nothing.
"""
