"""What may be wrong with a data set, found before anything is trained on it.

Duplicates, subjects on both sides, class balance, outliers, shortcuts (:mod:`.shortcuts`), the
shift between training and test, and clusters of acquisition. Labels of the test split serve to
describe the set; nothing that is trained or chosen later sees what comes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from medvq.audit.acquisition import GROUPS
from medvq.audit.shortcuts import WARNING, ShortcutResult, told
from medvq.datasets.dataset import SPLITS
from medvq.datasets.manifest import crossing_subjects

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

NEAR = 0.985
"""Correlation of two thumbnails above which they show the same image. Radiographs are too
alike for the 64 bits of a perceptual hash; see docs/audit.md."""
_LOW_FREQUENCIES = 8
_THUMBNAIL = 32
_MOST_PAIRS = 20_000
_MOST_COMPARED = 50_000
_MOST_LISTED = 500
_OUTLYING = 5.0
_CHUNK = 512
_CLUSTERS = 6
_FEWEST_IN_CLUSTER = 10

_TELLS = {
    "frame_and_position": "the frame around the object with its position and scale",
    "frame": "the frame around the object",
    "position": "the position and scale of the object",
    "file_size": "the size of the file",
    "image_size": "the width, height and aspect of the image",
    "equipment": "the equipment that the header names",
    "settings": "the settings of the acquisition in the header (bit depth, exposure, view)",
    "moment": "the day and hour of the study (days since the set's first)",
    "person": "age and sex in the header",
}


@dataclass(frozen=True)
class ImageStatistics:
    """One row per image.

    Attributes
    ----------
    thumbnails : uint8 (N, 32, 32).
    mean, deviation : float32 (N,), of the grey values.
    constant : bool (N,), true where all pixels are equal.
    """

    thumbnails: Bytes
    mean: Floats
    deviation: Floats
    constant: NDArray[np.bool_]


def planes(images: NDArray[Any]) -> NDArray[Any]:
    """One picture of each image: the mean over channels, the middle slice.

    Parameters
    ----------
    images : shape (B, H, W) of grey pictures, else (B, C, [D,] H, W).

    Returns
    -------
    Shape (B, H, W).

    >>> planes(np.arange(24).reshape(1, 1, 3, 2, 4)).tolist()
    [[[8.0, 9.0, 10.0, 11.0], [12.0, 13.0, 14.0, 15.0]]]
    """
    if images.ndim == 3:
        return images
    if images.ndim == 5:
        images = images[:, :, images.shape[2] // 2]
    return np.asarray(images.mean(1))


def measure(images: Bytes) -> ImageStatistics:
    """Go through all images once, a few at a time."""
    size = (_THUMBNAIL, _THUMBNAIL)
    thumbnails, lowest, highest, mean, deviation = [], [], [], [], []
    for start in range(0, len(images), _CHUNK):
        shown = planes(images[start : start + _CHUNK])
        lowest.append(shown.min((1, 2)))
        highest.append(shown.max((1, 2)))
        for picture in shown:
            small = cv2.resize(np.float32(picture), size, interpolation=cv2.INTER_AREA)
            mean.append(small.mean())
            deviation.append(small.std())
            thumbnails.append(small.round().astype(np.uint8))
    constant = np.concatenate(lowest) == np.concatenate(highest)
    return ImageStatistics(np.stack(thumbnails), np.array(mean), np.array(deviation), constant)


def audit(
    manifest: pd.DataFrame,
    images: Bytes,
    frame: Floats,
    acquisition: pd.DataFrame,
    groupings: Mapping[str, Sequence[str]],
    published: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], NDArray[np.intp]]:
    """Examine a data set.

    Parameters
    ----------
    manifest : one row per image.
    images : uint8, as read; see :func:`planes`.
    frame : float32 (N, F + 4): the frame, then position and scale, of each image.
    acquisition : one row per image, see :func:`medvq.audit.acquisition.describe`.
    groupings : the source's rules that say which images are of one subject: for each, a name per
        image. The first is the one that the splits keep to.
    published : how many images the data set should have.
    seed : of clusters, and of samples of large sets.

    Returns
    -------
    What ``audit.json`` holds, and shape (N,), the cluster of each image (-1: there are none).
    """
    measured = measure(images)
    outer = manifest.assign(split=manifest["split"].replace("validation", "train"))
    exact = _groups(manifest["sha256"])
    near, why_no_near = near_duplicates(measured.thumbnails)
    near = [group for group in near if manifest["sha256"].iloc[group].nunique() > 1]
    rules = [_by_rule(rule, outer.assign(subject_id=list(n))) for rule, n in groupings.items()]
    clusters = acquisition_clusters(frame, seed)
    tables = _tables(manifest, frame, acquisition)
    found = {
        "images": len(manifest),
        "images_published": published,
        "duplicate_files": sum(map(len, exact)),
        "duplicate_groups": len(exact),
        "duplicates_across_train_and_test": _crossing(outer, exact),
        "near_duplicate_groups": None if why_no_near else len(near),
        "near_duplicates_across_train_and_test": None if why_no_near else _crossing(outer, near),
        "subjects_in_train_and_test": rules[0]["in_train_and_test"],
        "subjects_with_two_labels": rules[0]["with_two_labels"],
        "groupings": rules,
        "balance": balance(manifest),
        "shortcuts": _shortcuts(outer, tables, seed),
        "shift": _shift(outer, tables["frame_and_position"], seed),
        "clusters": [balance(manifest[clusters == c]) for c in range(clusters.max() + 1)],
        "outliers": _outliers(manifest, measured),
        "exact_duplicates": [_described(manifest, group) for group in exact[:_MOST_LISTED]],
        "near_duplicates": [_described(manifest, group) for group in near[:_MOST_LISTED]],
        "near_duplicates_not_searched": why_no_near,
    }
    return found, clusters


def headline(found: dict[str, Any]) -> dict[str, Any]:
    """The few figures of an audit that every later stage shows beside its own."""
    measured = [s for s in found["shortcuts"] if s["auroc"] is not None]
    strongest = max(measured, key=lambda s: s["auroc"], default=None)
    return {
        "strongest_shortcut": strongest and {k: strongest[k] for k in ("name", "what", "auroc")},
        "test_told_from_train": {s["label"]: s["auroc"] for s in found["shift"]},
        "warnings": warnings(found),
    }


def warnings(found: dict[str, Any]) -> int:
    """How many figures of an audit call for a look."""
    counts = (
        *(s["warning"] for s in found["shortcuts"] + found["shift"]),
        *(r["in_train_and_test"] > 0 for r in found["groupings"]),
        found["subjects_with_two_labels"] > 0,
        found["duplicates_across_train_and_test"] > 0,
        (found["near_duplicates_across_train_and_test"] or 0) > 0,
        len(found["outliers"]["constant"]) > 0,
    )
    return sum(map(int, counts))


def balance(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Images of each label in each split; those without a label under the empty name.

    >>> table = pd.DataFrame({"split": ["train", "test", "train"], "label_name": ["a", "a", ""]})
    >>> balance(table)
    {'train': {'': 1, 'a': 1}, 'test': {'a': 1}}
    """
    counts = {
        split: table.loc[table["split"] == split, "label_name"].value_counts().sort_index()
        for split in SPLITS
    }
    return {split: {str(k): int(v) for k, v in c.items()} for split, c in counts.items() if len(c)}


def near_duplicates(thumbnails: Bytes) -> tuple[list[list[int]], str]:
    """Groups of images whose thumbnails correlate above :data:`NEAR`, whatever their brightness and
    contrast; and, where it was not searched, why.

    All pairs are compared by their 8x8 lowest frequencies of the cosine transform (what perceptual
    hashes take the signs of), and those that pass, by all of the thumbnail. The time grows with the
    square of N, of which there may be 50,000.
    """
    if len(thumbnails) > _MOST_COMPARED:
        return [], f"there are more than {_MOST_COMPARED} images"
    flat = thumbnails.reshape(len(thumbnails), -1)
    chunks = range(0, len(thumbnails), _CHUNK)
    low = np.concatenate([_low_frequencies(thumbnails[start : start + _CHUNK]) for start in chunks])
    pairs: list[NDArray[np.intp]] = []
    found = 0
    for start in chunks:
        one, other = np.nonzero(low[start : start + _CHUNK] @ low[start:].T > NEAR)
        one, other = one[one < other] + start, other[one < other] + start
        found += len(one)
        if found > _MOST_PAIRS:
            return [], f"the images are too alike: more than {_MOST_PAIRS} pairs"
        alike = np.einsum("np,np->n", _normalised(flat[one]), _normalised(flat[other])) > NEAR
        pairs.append(np.stack([one[alike], other[alike]]))
    one, other = np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0), np.intp)
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(low), len(low)))
    return _groups(pd.Series(connected_components(graph, directed=False)[1])), ""


def acquisition_clusters(frame: Floats, seed: int = 0) -> NDArray[np.intp]:
    """Clusters of images with like frames and positions, largest first; shape (N,), -1 for none.

    k-means on the principal components of the standardised features, without labels.
    """
    standard = StandardScaler().fit_transform(frame)
    distinct = len(np.unique(standard.round(3), axis=0))
    count = min(_CLUSTERS, len(frame) // _FEWEST_IN_CLUSTER, distinct)
    if count < 2:
        return np.full(len(frame), -1)
    reduced = PCA(min(16, *standard.shape), svd_solver="full").fit_transform(standard)
    assigned = KMeans(count, n_init=4, random_state=seed).fit_predict(reduced)
    by_size = np.argsort(-np.bincount(assigned, minlength=count), kind="stable")
    return np.asarray(np.argsort(by_size)[assigned], np.intp)


def _low_frequencies(thumbnails: Bytes) -> Floats:
    low = dctn(thumbnails.astype(np.float32), axes=(1, 2), norm="ortho")
    low = low[:, :_LOW_FREQUENCIES, :_LOW_FREQUENCIES].reshape(len(low), -1)
    low[:, 0] = 0  # the mean
    return _normalised(low)


def _normalised(rows: NDArray[Any]) -> Floats:
    rows = rows - rows.mean(1, keepdims=True, dtype=np.float32)
    # Constant images have no norm, and are listed as such.
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-3))


def _groups(keys: pd.Series) -> list[list[int]]:
    """Positions of rows that share a key with another, in order of first appearance."""
    positions = pd.Series(np.arange(len(keys)))[keys.duplicated(keep=False).to_numpy()]
    grouped = positions.groupby(keys.to_numpy()[positions.index], sort=False)
    return [group.tolist() for _, group in grouped]


def _crossing(outer: pd.DataFrame, groups: list[list[int]]) -> int:
    return sum(outer["split"].iloc[group].nunique() > 1 for group in groups)


def _described(manifest: pd.DataFrame, group: list[int]) -> dict[str, Any]:
    rows = manifest.iloc[group]
    return {
        "images": rows["image_id"].tolist(),
        "splits": sorted(set(rows["split"])),
        "labels": sorted(set(rows["label_name"])),
        "subjects": int(rows["subject_id"].nunique()),
    }


def _by_rule(rule: str, outer: pd.DataFrame) -> dict[str, Any]:
    crossing = crossing_subjects(outer)
    inside = outer[outer["subject_id"].isin(crossing)]
    labelled = outer[outer["label_name"] != ""]
    two = labelled.groupby("subject_id")["label_name"].nunique() > 1
    return {
        "rule": rule,
        "subjects": int(outer["subject_id"].nunique()),
        "in_train_and_test": len(crossing),
        "their_test_images": int((inside["split"] == "test").sum()),
        "with_two_labels": int(two.sum()),
    }


def _tables(
    manifest: pd.DataFrame, frame: Floats, acquisition: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """What may tell the label, by name: N rows each."""
    both = pd.DataFrame(frame)
    both.columns = both.columns.astype(str)
    sizes = manifest[["width", "height", "depth"]].reset_index(drop=True).astype(float)
    sizes["aspect"] = sizes["width"] / sizes["height"]
    tables = {
        "frame_and_position": both,
        "frame": both.iloc[:, :-4],
        "position": both.iloc[:, -4:],
        "image_size": sizes,
    }
    for group in GROUPS:
        mine = [c for c in acquisition if str(c).partition(".")[0] == group]
        if mine:
            tables[group] = acquisition[mine]
    return tables


def _shortcuts(
    outer: pd.DataFrame, tables: Mapping[str, pd.DataFrame], seed: int
) -> list[dict[str, Any]]:
    """How well each table tells the label on train and validation, strongest first."""
    rows = ((outer["split"] == "train") & (outer["label_name"] != "")).to_numpy()
    labels, subjects = (outer.loc[rows, c].to_numpy(str) for c in ("label_name", "subject_id"))
    results = told({name: table[rows] for name, table in tables.items()}, labels, subjects, seed)
    if not rows.any():
        results = dict.fromkeys(tables, ShortcutResult(None, "no labels"))
    found = []
    for name, result in results.items():
        sentence = (
            f"The label can be told from {_TELLS[name]} alone. A classifier may learn that instead "
            "of the disease, and fail where it no longer holds."
            if _warns(result)
            else f"Little of the label can be told from {_TELLS[name]}."
        )
        found.append(_entry(result, sentence, name=name, what=_TELLS[name]))
    return sorted(found, key=lambda s: -(s["auroc"] or 0))


def _shift(outer: pd.DataFrame, table: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """How well test is told from train by frame and position, within each class."""
    test = (outer["split"] == "test").to_numpy()
    found = []
    for label in sorted(set(outer["label_name"])):
        rows = (outer["label_name"] == label).to_numpy()
        subjects = outer.loc[rows, "subject_id"].to_numpy(str)
        result = told({"": table[rows]}, test[rows], subjects, seed)[""]
        if not test.any():
            result = ShortcutResult(None, "no test split")
        which = f"{label} images" if label else "images without a label"
        sentence = (
            f"Test {which} look unlike those of train around the object: they were acquired "
            "otherwise, and figures on test measure that too."
            if _warns(result)
            else f"Test {which} are framed much as those of train."
        )
        found.append(_entry(result, sentence, label=label))
    return found


def _warns(result: ShortcutResult) -> bool:
    return result.auroc is not None and result.auroc > WARNING


def _entry(result: ShortcutResult, sentence: str, **named: str) -> dict[str, Any]:
    auroc = None if result.auroc is None else round(result.auroc, 4)
    meaning = f"Not computed: {result.reason}." if auroc is None else sentence
    return {
        **named,
        "auroc": auroc,
        "ci95": result.interval and [round(end, 4) for end in result.interval],
        "warning": _warns(result),
        "meaning": meaning,
    }


def _outliers(manifest: pd.DataFrame, measured: ImageStatistics) -> dict[str, list[str]]:
    """Images far from the others, by identity, farthest first.

    Far is five robust deviations (1.4826 times the median deviation) from the median.
    """
    sides = manifest[["width", "height"]].to_numpy(float)
    by_kind = {
        "size": np.maximum(_distance(sides.prod(1)), _distance(sides[:, 0] / sides[:, 1])),
        "intensity": np.maximum(_distance(measured.mean), _distance(measured.deviation)),
        "constant": np.where(measured.constant, np.inf, 0.0),
    }
    names = manifest["image_id"].to_numpy(str)
    return {
        kind: names[order[distance[order] > _OUTLYING]][:_MOST_LISTED].tolist()
        for kind, distance in by_kind.items()
        for order in [np.argsort(-distance, kind="stable")]
    }


def _distance(values: NDArray[Any]) -> NDArray[np.float64]:
    away = np.abs(values - np.median(values)).astype(np.float64)
    scale = 1.4826 * np.median(away) or away.std()
    return np.asarray(away / scale if scale else np.zeros_like(away))
