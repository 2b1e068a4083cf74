"""Whether a probe can draw its labels, said before anything is trained."""

from __future__ import annotations

import warnings

import pandas as pd

from medvq.config import ProbeConfig
from medvq.errors import Notice, UserError
from medvq.evaluation.label_subsets import draw_subset


def check_label_fraction(manifest: pd.DataFrame, probe: ProbeConfig) -> None:
    """Refuse a fraction of the labels that leaves a class too few subjects.

    Of cross-validation nothing is said: its labels are drawn from all splits.

    Parameters
    ----------
    manifest : one row per image.

    Raises
    ------
    UserError
        The fraction is too small; the message names the smallest that works.
    """
    rows = manifest[(manifest["split"] == "train") & (manifest["label_name"] != "")]
    if probe.label_subsets != "random" or probe.evaluate != "test":
        return
    if rows.empty or manifest["target"].notna().any():
        return
    subjects, labels = rows["subject_id"].to_numpy(str), rows["label"].to_numpy("int64")
    draw_subset(subjects, labels, probe.label_fraction, seed=0)


def warn_of_label_fraction(manifest: pd.DataFrame, probe: ProbeConfig) -> None:
    """Warn of what :func:`check_label_fraction` refuses, where no probe need follow.

    Raises
    ------
    UserError
        All labels are too few as well.
    """
    check_label_fraction(manifest, probe.model_copy(update={"label_fraction": 1.0}))
    try:
        check_label_fraction(manifest, probe)
    except UserError as error:
        warnings.warn(Notice(f"the probe will refuse these settings: {error}"), stacklevel=2)
