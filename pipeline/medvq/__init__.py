"""MedVQ: features from unlabelled medical images that need few labels.

The flow, one stage after another, is ``data -> training -> features -> probe -> reporting``.
"""

import os

# Set before torch or MLflow is imported anywhere, and only where the user has not said otherwise.
# Threads that spin while they wait starve each other on small machines: a passive wait trained a
# small convolutional network four times as fast on two shared cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

__version__ = "0.1.0"
