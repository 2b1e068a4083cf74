"""The stages of the flow, one file per make target.

Every :class:`~medvq.stages.stage.Stage` that a module of this folder makes is one: to add a stage,
add its file.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from medvq.stages.stage import Stage


def _depth(stage: Stage[Any]) -> int:
    return max((1 + _depth(read) for read in stage.reads), default=0)


def _all_stages() -> dict[str, Stage[Any]]:
    """Return the stages by name, each after those that it reads."""
    modules = [import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    stages = {
        value.name: value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Stage)
    }
    order = sorted(stages.values(), key=lambda s: (s.prepare is not None, _depth(s), s.name))
    return {stage.name: stage for stage in order}


STAGES = _all_stages()
