"""What may be wrong with a data set, found before anything is trained on it.

Duplicates, class balance, outliers, shortcuts, the shift from
training to test images, and clusters of acquisition. Labels of the test split serve to describe the
set; nothing that is trained or chosen later depends on what they show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medvq.audit.acquisition import GROUPS
from medvq.audit.clusters import acquisition_clusters
from medvq.audit.duplicates import DuplicateGroup, find_duplicates
from medvq.audit.outliers import find_outliers, image_statistics
from medvq.audit.shortcuts import WARNING, ShortcutResult, measure_shortcuts
from medvq.datasets.dataset import SPLITS
from medvq.datasets.manifest import images_per_subject
from medvq.summaries import AuditHeadline, Shortcut

Balance = dict[str, dict[str, int]]
"""Images of each label in each split; those without a label under the empty name."""
MAX_LISTED = 500
"""Groups or images that a list of the audit names at most."""
_SOME = 0.60  # AUROC from which what is below a warning is not little

_SHORTCUTS = {
    "frame_and_position": "the frame around the object with its position and scale",
    "frame": "the frame around the object",
    "position": "the position and scale of the object",
    "file_size": "the size of the file",
    "image_size": "the width, height and aspect of the image",
    "equipment": "the equipment that the header names",
    "settings": "the settings of the acquisition in the header (bit depth, exposure, view)",
    "moment": "the day and hour of the study (days since the set's first)",
    "person": "age and sex in the header",
    "images_per_subject": "the number of images of the subject",
}


@dataclass(frozen=True)
class ShortcutFinding:
    """How well something besides the object predicts the label; a ``warning`` calls for a look."""

    name: str
    what: str
    auroc: float | None
    ci95: tuple[float, float] | None
    warning: bool
    meaning: str


@dataclass(frozen=True)
class ShiftFinding:
    """How well frame and position tell test images of one label from training images."""

    label: str
    auroc: float | None
    ci95: tuple[float, float] | None
    warning: bool
    meaning: str


@dataclass(frozen=True)
class Audit:
    """What ``audit.json`` holds.

    Attributes
    ----------
    images_published : how many there should be; None where nobody says.
    shortcuts : strongest first.
    clusters : the balance of each cluster of acquisition, largest first.
    outliers : identities of images by kind, farthest first.
    near_duplicates_not_searched : the reason; then their numbers are None.
    """

    dataset: str
    images: int
    images_published: int | None
    duplicate_files: int
    duplicate_groups: int
    duplicates_across_train_and_test: int
    near_duplicate_groups: int | None
    near_duplicates_across_train_and_test: int | None
    subjects: int
    subjects_with_two_labels: int
    balance: Balance
    shortcuts: list[ShortcutFinding]
    shift: list[ShiftFinding]
    clusters: list[Balance]
    outliers: dict[str, list[str]]
    exact_duplicates: list[DuplicateGroup]
    near_duplicates: list[DuplicateGroup]
    near_duplicates_not_searched: str

    def warnings(self) -> int:
        """Return how many figures call for a look."""
        counts = (
            *(finding.warning for finding in self.shortcuts),
            *(finding.warning for finding in self.shift),
            self.subjects_with_two_labels > 0,
            self.duplicates_across_train_and_test > 0,
            (self.near_duplicates_across_train_and_test or 0) > 0,
            len(self.outliers["constant"]) > 0,
        )
        return sum(map(int, counts))

    def headline(self) -> AuditHeadline:
        """Return the few figures that every later stage shows beside its own."""
        measured = (
            Shortcut(finding.name, finding.what, finding.auroc)
            for finding in self.shortcuts
            if finding.auroc is not None
        )
        shift = {finding.label: finding.auroc for finding in self.shift}
        return AuditHeadline(next(measured, None), shift, self.warnings())


def audit(
    dataset: str,
    manifest: pd.DataFrame,
    images: NDArray[np.uint8],
    frame: NDArray[np.float32],
    acquisition: pd.DataFrame,
    published: int | None = None,
    seed: int = 0,
) -> tuple[Audit, NDArray[np.intp]]:
    """Return the audit of a data set, and the cluster of acquisition of each image (N,), or -1.

    Parameters
    ----------
    images : uint8, as read; see :func:`medvq.images.frame.grey_planes`.
    frame : (N, F), see :func:`medvq.images.frame.frame_features`.
    acquisition : one row per image, see :func:`medvq.audit.acquisition.describe`.
    seed : of clusters, and of samples of large sets.
    """
    statistics = image_statistics(images)
    # Validation images are a part of train that this package has chosen.
    outer = manifest.assign(split=manifest["split"].replace("validation", "train"))
    exact, near, reason = find_duplicates(manifest, statistics.thumbnails)
    clusters = acquisition_clusters(frame, seed)
    tables = _tables(manifest, frame, acquisition)
    result = Audit(
        dataset=dataset,
        images=len(manifest),
        images_published=published,
        duplicate_files=sum(map(len, exact)),
        duplicate_groups=len(exact),
        duplicates_across_train_and_test=_crossing(outer, exact),
        near_duplicate_groups=None if reason else len(near),
        near_duplicates_across_train_and_test=None if reason else _crossing(outer, near),
        subjects=int(manifest["subject_id"].nunique()),
        subjects_with_two_labels=_with_two_labels(manifest),
        balance=balance(manifest),
        shortcuts=_shortcuts(outer, tables, seed),
        shift=_shift(outer, tables["frame_and_position"], seed),
        clusters=[balance(manifest[clusters == c]) for c in range(clusters.max() + 1)],
        outliers=find_outliers(manifest, statistics, MAX_LISTED),
        exact_duplicates=[DuplicateGroup.of(manifest, group) for group in exact[:MAX_LISTED]],
        near_duplicates=[DuplicateGroup.of(manifest, group) for group in near[:MAX_LISTED]],
        near_duplicates_not_searched=reason,
    )
    return result, clusters


def balance(table: pd.DataFrame) -> Balance:
    """Count the images of each label in each split that has any.

    >>> table = pd.DataFrame({"split": ["train", "test", "train"], "label_name": ["a", "a", ""]})
    >>> balance(table)
    {'train': {'': 1, 'a': 1}, 'test': {'a': 1}}
    """
    counts = {
        split: table.loc[table["split"] == split, "label_name"].value_counts().sort_index()
        for split in SPLITS
    }
    return {split: {str(k): int(v) for k, v in c.items()} for split, c in counts.items() if len(c)}


def _crossing(outer: pd.DataFrame, groups: list[list[int]]) -> int:
    """Return how many groups of rows stand in both train and test."""
    return sum(outer["split"].iloc[group].nunique() > 1 for group in groups)


def _with_two_labels(manifest: pd.DataFrame) -> int:
    """Return how many subjects have images under more than one label."""
    labelled = manifest[manifest["label_name"] != ""]
    return int((labelled.groupby("subject_id")["label_name"].nunique() > 1).sum())


def _tables(
    manifest: pd.DataFrame, frame: NDArray[np.float32], acquisition: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Return what may predict the label, by name: N rows each."""
    both = pd.DataFrame(frame)
    both.columns = both.columns.astype(str)
    sizes = manifest[["width", "height", "depth"]].reset_index(drop=True).astype(float)
    sizes["aspect"] = sizes["width"] / sizes["height"]
    tables = {
        "frame_and_position": both,
        "frame": both.iloc[:, :-4],
        "position": both.iloc[:, -4:],
        "image_size": sizes,
        "images_per_subject": images_per_subject(manifest).to_frame(),
    }
    for group in GROUPS:
        columns = [c for c in acquisition if str(c).partition(".")[0] == group]
        if columns:
            tables[group] = acquisition[columns]
    return tables


def _shortcuts(
    outer: pd.DataFrame, tables: Mapping[str, pd.DataFrame], seed: int
) -> list[ShortcutFinding]:
    """Measure how well each table predicts the label on train and validation."""
    rows = ((outer["split"] == "train") & (outer["label_name"] != "")).to_numpy()
    results = dict.fromkeys(tables, ShortcutResult(None, "no labels"))
    if rows.any():
        labels, subjects = (outer.loc[rows, c].to_numpy(str) for c in ("label_name", "subject_id"))
        labelled = {name: table[rows] for name, table in tables.items()}
        results = measure_shortcuts(labelled, labels, subjects, seed)
    findings = []
    for name, result in results.items():
        what, much = _SHORTCUTS[name], "Some" if (result.auroc or 0) >= _SOME else "Little"
        judged = _judge(
            result,
            f"The label can be told from {what} alone. A classifier may learn that instead of the "
            "disease, and fail where it no longer holds.",
            f"{much} of the label can be told from {what}.",
        )
        findings.append(ShortcutFinding(name, what, *judged))
    return sorted(findings, key=lambda finding: -(finding.auroc or 0))


def _shift(outer: pd.DataFrame, table: pd.DataFrame, seed: int) -> list[ShiftFinding]:
    """Measure how well test is told from train by frame and position, within each class."""
    test = (outer["split"] == "test").to_numpy()
    findings = []
    for label in sorted(set(outer["label_name"])):
        rows = (outer["label_name"] == label).to_numpy()
        subjects = outer.loc[rows, "subject_id"].to_numpy(str)
        result = measure_shortcuts({"": table[rows]}, test[rows], subjects, seed)[""]
        if not test.any():
            result = ShortcutResult(None, "no test split")
        images = f"images of '{label}'" if label else "images without a label"
        judged = _judge(
            result,
            f"Test {images} look unlike those of train around the object: they were acquired "
            "otherwise, and figures on test measure that too.",
            f"Test {images} are framed much as those of train.",
        )
        findings.append(ShiftFinding(label, *judged))
    return findings


def _judge(
    result: ShortcutResult, warning: str, reassurance: str
) -> tuple[float | None, tuple[float, float] | None, bool, str]:
    """Return the AUROC and its interval, rounded, whether to warn, and what it means."""
    if result.auroc is None or result.interval is None:
        return None, None, False, f"Not computed: {result.reason}."
    low, high = (round(end, 4) for end in result.interval)
    warns = result.auroc > WARNING
    return round(result.auroc, 4), (low, high), warns, warning if warns else reassurance
