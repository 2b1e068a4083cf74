"""The public API: load a configuration, run a stage, use a trained encoder and a fitted probe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvq import config_file
from medvq.config import Config
from medvq.flow import run

__all__ = ["load_config", "run"]


def load_config(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return a configuration.

    Parameters
    ----------
    name : the name of a shipped configuration, or a path to a yaml file.
    overrides : values by dotted key, such as ``{"pretrain.epochs": 3}``.

    Raises
    ------
    UserError
        There is none of that name, or a key or value is not allowed.
    """
    return config_file.load_config(config_file.config_file(str(name)), overrides or {})
