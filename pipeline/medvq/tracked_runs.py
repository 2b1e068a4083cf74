"""What MLflow is told of a result, and the names that it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrackedRun:
    """What one MLflow run is told when a stage ends.

    Attributes
    ----------
    metrics : final values by name.
    step : the step that they are logged at.
    feature_set : the feature set of a probe's row; empty for the run of the stage itself.
    parameters : parameters besides the stage's own settings.
    headline : the metric that probes are compared by.
    classes : names of the classes that a probe tells apart.
    key_figure : what the run found, in one sentence.
    """

    metrics: dict[str, float]
    step: int = 0
    feature_set: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    headline: str = ""
    classes: Sequence[str] = ()
    key_figure: str = ""


def tracked_name(metric: str, headline: str) -> str:
    """Return the name of a metric in MLflow, whose pages begin with the first in the alphabet.

    >>> sorted(tracked_name(metric, "auroc") for metric in ("accuracy", "auprc", "auroc"))
    ['auroc', 'test_accuracy', 'test_auprc']
    """
    return metric if metric == headline else f"test_{metric}"


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers in nested JSON objects under dotted names; lists are left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            yield prefix + key, float(value)
