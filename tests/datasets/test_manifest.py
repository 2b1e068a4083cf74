"""The manifest's promise: no subject on both sides, unless the published split has it so."""

from pathlib import Path

import pandas as pd
import pytest
from medvq.datasets.manifest import COLUMNS, check_manifest, crossing_subjects, read_manifest
from medvq.errors import UserError


def table(*rows: tuple[str, str]) -> pd.DataFrame:
    """Rows of (subject, split)."""
    return pd.DataFrame(
        {
            "extra": 1.0,
            "source": "test",
            "image_id": [f"{number:04x}" for number in range(len(rows))],
            "path": ["", "b.png", *("c.png",) * (len(rows) - 2)],
            "subject_id": [subject for subject, _ in rows],
            "certain_subject_id": [f"{subject}1" for subject, _ in rows],
            "split": [split for _, split in rows],
            "label": pd.array([None, *range(1, len(rows))], "Int64"),
            "label_name": ["", *("ill",) * (len(rows) - 1)],
            "sha256": "00",
            "width": 4,
            "height": 3,
            "depth": 1,
            "channels": 1,
            "target": [None, *range(1, len(rows))],
            "target_name": "volume_mm3",
            "folds": ["", *("0 3",) * (len(rows) - 1)],
        }
    )


APART = (("a", "train"), ("a", "train"), ("b", "validation"), ("c", "test"))


def test_a_sound_table_keeps_its_rows_in_the_columns_of_the_manifest() -> None:
    given = table(*APART)
    checked = check_manifest(given, official_crossing=False)
    assert tuple(checked.columns) == COLUMNS
    pd.testing.assert_frame_equal(checked, given[list(COLUMNS)])


@pytest.mark.parametrize("official", [False, True])
def test_train_and_validation_never_share_a_subject(official: bool) -> None:
    crossing = table(*APART, ("d", "validation"), ("d", "train"))
    with pytest.raises(UserError, match=r"1 subject\(s\) stand in two splits, e\.g\. d"):
        check_manifest(crossing, official_crossing=official)


# Validation is made from the published train, so who crosses into test may stand in either.
@pytest.mark.parametrize("part", ["train", "validation"])
def test_only_a_published_split_may_cross_into_test(part: str) -> None:
    crossing = table(*APART, ("d", part), ("d", "test"))
    with pytest.raises(UserError, match=r"e\.g\. d"):
        check_manifest(crossing, official_crossing=False)
    assert len(check_manifest(crossing, official_crossing=True)) == len(crossing)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_no_split_may_be_empty(split: str) -> None:
    rows = [row for row in APART if row[1] != split]
    with pytest.raises(UserError, match=rf"no image is left for .*{split}"):
        check_manifest(table(*rows), official_crossing=False)


def test_image_ids_are_unique() -> None:
    with pytest.raises(UserError, match="same image_id"):
        check_manifest(table(*APART).assign(image_id="0000"), official_crossing=False)


def test_crossing_subjects_by_hand() -> None:
    rows = (("c", "train"), ("c", "test"), ("a", "train"), ("a", "train"), ("b", "test"))
    assert crossing_subjects(table(*rows, ("b", "validation"))) == ["b", "c"]


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    # Digits alone must stay text: 0000 is an identifier, not nothing.
    written = check_manifest(table(*APART), official_crossing=False)
    written.to_csv(tmp_path / "manifest.csv", index=False)
    read = read_manifest(tmp_path / "manifest.csv")
    for column in ("image_id", "path", "subject_id", "split", "label_name", "width"):
        assert read[column].tolist() == written[column].tolist()
    pd.testing.assert_series_equal(read["label"], written["label"])
