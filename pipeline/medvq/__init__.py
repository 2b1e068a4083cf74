"""MedVQ: features from unlabelled medical images that need few labels.

>>> import medvq
>>> config = medvq.load_config("kermany", {"pretrain.epochs": 3})
>>> config.pretrain.epochs
3

The public API is what ``__all__`` lists; everything else is private. It is imported when it is
first used, since torch takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvq.api import load_config, run

__all__ = ["__version__", "load_config", "run"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from medvq import api

        return getattr(api, name)
    raise AttributeError(f"module 'medvq' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
