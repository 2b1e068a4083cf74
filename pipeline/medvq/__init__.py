"""MedVQ: features from unlabelled medical images that need few labels.

>>> import medvq
>>> config = medvq.load_config("kermany", {"pretrain.epochs": 3})
>>> config.pretrain.epochs
3

The public API is what ``__all__`` lists; everything else is private. A name is imported when it is
first used, since torch takes seconds. All that the import itself does is to have libraries that are
imported later send nothing to their makers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medvq.telemetry import refuse_telemetry

if TYPE_CHECKING:
    from medvq.config_file import load_config
    from medvq.flow import run
    from medvq.inference import Encoder, Encoding, load_encoder, load_probe
    from medvq.stages.stage import RunOptions

__all__ = [
    "Encoder",
    "Encoding",
    "RunOptions",
    "__version__",
    "load_config",
    "load_encoder",
    "load_probe",
    "run",
]
__version__ = "0.2.0"
_MODULES = {"load_config": "config_file", "run": "flow", "RunOptions": "flow"}

refuse_telemetry()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'medvq' has no attribute '{name}'")
    return getattr(import_module(f"medvq.{_MODULES.get(name, 'inference')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
