"""Tables of the pages that studies write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def table_row(head: str, cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join([head, *cells]) + " |"


def interval(value: Mapping[str, Any], sign: str = "") -> str:
    """A figure with its 95% interval; ``sign="+"`` for a difference.

    >>> interval({"mean": 0.95, "ci95": [0.9, 0.98]})
    '0.950 [0.900, 0.980]'
    """
    low, high = value["ci95"]
    return f"{value['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
