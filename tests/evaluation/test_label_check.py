"""What no probe can draw is refused before training, and a fraction that is too small is told."""

import pandas as pd
import pytest
from medvq.config import ProbeConfig
from medvq.errors import Notice, UserError
from medvq.evaluation.label_check import warn_of_label_fraction


def manifest(labels: str) -> pd.DataFrame:
    """Training images of one subject each, or of one subject where letters stand together."""
    rows = [(f"s{n}", letter) for n, word in enumerate(labels.split()) for letter in word]
    table = pd.DataFrame(rows, columns=["subject_id", "label_name"])
    codes = {letter: n for n, letter in enumerate(sorted(set(table["label_name"])))}
    return table.assign(
        split="train", target=float("nan"), label=table["label_name"].map(codes).astype("Int64")
    )


def test_a_small_fraction_is_told_and_too_few_subjects_are_refused() -> None:
    with pytest.warns(Notice, match="the probe will refuse these settings: LABEL_FRACTION=0.05"):
        warn_of_label_fraction(manifest("a a a a b b b b"), ProbeConfig(label_fraction=0.05))
    # Every subject is of both classes, and counts by its first image.
    with pytest.raises(UserError, match="fewer than two labelled training subjects"):
        warn_of_label_fraction(manifest("ab ab ab ab"), ProbeConfig(label_fraction=0.5))
