"""What a model of the codes is good for: likelihood, samples, anomalies, typicality.

``python -m benchmarks.prior`` writes ``docs/results/prior-<data set>.md``. Scores, epochs and sizes
were chosen on validation images; the test split is read here, once.
"""
