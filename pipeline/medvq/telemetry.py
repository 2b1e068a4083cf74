"""What libraries would send to their makers."""

from __future__ import annotations

import os

_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "ORT_DISABLE_TELEMETRY": "1",
}


def refuse_telemetry() -> None:
    """Have libraries tell nobody how they are used, where the user has not said otherwise.

    MLflow, which MONAI imports, and ONNX Runtime would begin as they are imported, and keep a
    number of the machine in the home folder: it is too late to tell them then.
    """
    for name, value in _OFF.items():
        os.environ.setdefault(name, value)
