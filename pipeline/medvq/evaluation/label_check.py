"""Whether a probe can draw its labels, said before anything is trained."""

from __future__ import annotations

import warnings

import pandas as pd

from medvq.config import ProbeConfig
from medvq.errors import Notice, UserError
from medvq.evaluation.label_subsets import draw_subset


def warn_of_label_fraction(manifest: pd.DataFrame, probe: ProbeConfig) -> None:
    """Warn of a fraction of the labels that the probe would refuse after training.

    It is no error, since a probe need not follow. Of cross-validation nothing is said: its labels
    are drawn from all splits.

    Parameters
    ----------
    manifest : one row per image.
    """
    rows = manifest[(manifest["split"] == "train") & (manifest["label_name"] != "")]
    if probe.label_subsets != "random" or probe.evaluate != "test":
        return
    if rows.empty or manifest["target"].notna().any():
        return
    subjects, labels = rows["subject_id"].to_numpy(str), rows["label"].to_numpy("int64")
    try:
        draw_subset(subjects, labels, probe.label_fraction, seed=0)
    except UserError as error:
        warnings.warn(Notice(f"the probe will refuse these settings: {error}"), stacklevel=2)
