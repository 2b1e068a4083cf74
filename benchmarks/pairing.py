"""What one probe gains over another on the same draws and the same resampled test subjects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from medvq.config import Config
from medvq.evaluation import metrics
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def predictions_of(artifact: str | Path) -> pd.DataFrame:
    """What the probe in ``artifact`` said of each test image, by feature set and draw."""
    return pd.read_parquet(Path(artifact) / "predictions.parquet")


def aurocs(table: pd.DataFrame, config: Config) -> tuple[Floats, Floats]:
    """AUROC (D,) of each draw of one feature set, and (B, D) on resampled subjects."""
    draws = [draw.sort_values("image_id") for _, draw in table.groupby("draw")]
    truth = draws[0]["label"].to_numpy(np.int64)
    subjects = draws[0]["subject_id"].to_numpy(str)
    weights = metrics.subject_weights(subjects, config.probe.bootstrap, config.seed)

    def compute(draw: int, given: Floats) -> dict[str, Floats]:
        return metrics.evaluate(truth, draws[draw]["probability"].to_numpy(), 0.5, given)

    return metrics.over_draws(compute, len(draws), weights)["auroc"]


def gain(
    one: tuple[Floats, Floats], two: tuple[Floats, Floats], config: Config
) -> metrics.Interval:
    """How far ``one`` of :func:`aurocs` is above ``two``: mean and 95% interval."""
    repeats = metrics.draw_weights(len(one[0]), config.probe.bootstrap, config.seed)
    return metrics.interval(one[0] - two[0], one[1] - two[1], repeats)
