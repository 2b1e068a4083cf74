"""What a model of the codes is good for: likelihood, samples, anomalies, a gate, lesions.

``python -m benchmarks.prior`` writes ``docs/PRIOR-<data set>.md``, and pictures beside the
artifacts.
"""
