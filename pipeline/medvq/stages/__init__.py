"""The stages of the flow and the commands beside it, one file per make target.

Every :class:`~medvq.stages.stage.Stage` or :class:`~medvq.stages.command.Command` that a module of
this folder makes is one: to add one, add its file.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any, TypeVar

from medvq.stages.command import Command
from medvq.stages.stage import Stage

T = TypeVar("T", Stage[Any], Command)
_MODULES = [import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]


def _depth(stage: Stage[Any]) -> int:
    return max((1 + _depth(read) for read in stage.reads), default=0)


def _made(kind: type[T]) -> dict[str, T]:
    """Return what modules of this folder have made of a kind, by name."""
    values = [value for module in _MODULES for value in vars(module).values()]
    return {value.name: value for value in values if isinstance(value, kind)}


def _all_stages() -> dict[str, Stage[Any]]:
    """Return the stages by name, each after those that it reads."""
    order = sorted(_made(Stage).values(), key=lambda s: (s.prepare is not None, _depth(s), s.name))
    return {stage.name: stage for stage in order}


STAGES = _all_stages()
COMMANDS = dict(sorted(_made(Command).items()))
