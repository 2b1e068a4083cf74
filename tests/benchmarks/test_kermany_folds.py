"""The folds of the Kermany set: by hand on small sets, and the promises of the table itself."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from medvq.datasets.dataset import SourceImage
from medvq.datasets.folds import read_folds
from medvq.datasets.published.kermany import DATASET, list_images
from medvq.images.cache import ReadCache
from medvq.images.reading import file_checksums

from benchmarks.kermany_folds import Patients, block_folds, fold_table, patient_folds, together


def image(folder: Path, name: str, subject: str, content: str = "") -> SourceImage:
    path = folder / name
    path.write_text(content or name)
    return SourceImage(path, name, subject, "train", "NORMAL")


def test_patients_who_share_a_file_stay_together(tmp_path: Path) -> None:
    named = {"a": "im-12", "b": "im-9", "c": "im-12", "d": "im-10", "e": "virus-1"}
    equal = {"a": "same", "b": "same", "d": "other", "c": "other"}
    images = [
        image(tmp_path, name, subject, equal.get(name, "")) for name, subject in named.items()
    ]
    expected = {
        Patients("im", 9, 4, ("im-9", "im-10", "im-12")),
        Patients("virus", 1, 1, ("virus-1",)),
    }
    assert set(together(images)) == expected


def test_patients_of_one_stratum_are_dealt_out_evenly() -> None:
    patients = [
        Patients(series, number, images, (f"{series}-{number}",))
        for series in ("im", "virus")
        for number, images in enumerate([1] * 12 + [2] * 6 + [7])
    ]
    folds = patient_folds(patients)
    strata = defaultdict(list)
    for one in patients:
        strata[one.series, one.images].append(folds[one.subjects[0]])
    for dealt in strata.values():
        assert np.ptp(np.bincount(dealt, minlength=5)) <= 1
    # Not in the order of the numbers: those are dates.
    assert [folds[f"im-{n}"] for n in range(12)] != [n % 5 for n in range(12)]


def test_blocks_are_of_as_many_images_and_in_order() -> None:
    images = [6, 1, 1, 1, 1, 2, 2, 2, 2, 2, 5, 5]
    patients = [Patients("im", n, m, (f"im-{n}",)) for n, m in enumerate(images)]
    assert list(block_folds(patients).values()) == [0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    assert DATASET.folds is not None
    return read_folds(DATASET.folds)


@pytest.fixture
def images(real_data: Path) -> list[SourceImage]:
    return list(list_images(real_data / "kermany"))


def test_the_table_in_the_repository_is_that_of_the_real_files(
    images: list[SourceImage], table: pd.DataFrame
) -> None:
    pd.testing.assert_frame_equal(fold_table(images), table)


@pytest.mark.parametrize("column", ["patients", "blocks"])
def test_no_patient_and_no_identical_file_is_in_two_folds(
    images: list[SourceImage], table: pd.DataFrame, column: str
) -> None:
    assert table.index.is_unique
    folds = defaultdict(set)
    sums = file_checksums([image.path for image in images], ReadCache(None))
    for image, checksum in zip(images, sums, strict=True):
        folds[checksum].add(table.loc[image.subject, column])
    assert len(folds) == 5856 - 32  # 62 files are 30
    assert all(len(found) == 1 for found in folds.values())


def per_stratum(images: list[SourceImage], table: pd.DataFrame) -> pd.DataFrame:
    """A row for each patient: series, number of images, folds."""
    subject = pd.Series([image.subject for image in images])
    number = subject.value_counts()
    series = number.index.str.rpartition("-").get_level_values(0)
    return table.join(pd.DataFrame({"images": number, "series": series}, index=number.index))


def test_folds_by_patient_hold_as_many_of_each_subtype_and_multiplicity(
    images: list[SourceImage], table: pd.DataFrame
) -> None:
    patients = per_stratum(images, table)
    of_fold = pd.crosstab([patients["series"], patients["images"]], patients["patients"])
    # One off where patients are joined by an identical file.
    assert (of_fold.max(axis=1) - of_fold.min(axis=1)).max() <= 2
    of_series = patients.pivot_table("images", "series", "patients", aggfunc="sum")
    assert (of_series.max(axis=1) / of_series.min(axis=1)).max() < 1.06
    assert patients.groupby("patients")["images"].sum().between(1160, 1185).all()


def test_blocks_are_contiguous_in_every_series(
    images: list[SourceImage], table: pd.DataFrame
) -> None:
    patients = per_stratum(images, table)
    for _, series in patients.groupby("series"):
        order = np.argsort([int(name.rpartition("-")[2]) for name in series.index])
        in_order = series.iloc[order]
        assert in_order["blocks"].is_monotonic_increasing
        assert np.ptp(in_order.groupby("blocks")["images"].sum()) <= 5
