"""How MLflow's client talks to a server; read when MLflow is imported."""

from __future__ import annotations

import os

_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


def set_client_defaults() -> None:
    """Give up a server that does not answer after seconds.

    By default that takes minutes. Only where the user has not said otherwise. What fails is tried
    again by the sender: MLflow would start a second run where the answer to the first was lost.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
