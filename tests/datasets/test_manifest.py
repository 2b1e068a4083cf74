"""The manifest's promise: no subject on both sides, unless the published split has it so."""

from pathlib import Path

import pandas as pd
import pytest
from medvq.datasets.manifest import COLUMNS, check_manifest, images_per_subject, read_manifest
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
    checked = check_manifest(given)
    assert tuple(checked.columns) == COLUMNS
    pd.testing.assert_frame_equal(checked, given[list(COLUMNS)])


@pytest.mark.parametrize("pair", [("train", "validation"), ("train", "test")])
def test_splits_never_share_a_subject(pair: tuple[str, str]) -> None:
    crossing = table(*APART, ("d", pair[0]), ("d", pair[1]), ("a", "train"))
    with pytest.raises(UserError, match=r"1 subject\(s\) stand in two splits, e\.g\. d"):
        check_manifest(crossing)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_no_split_may_be_empty(split: str) -> None:
    rows = [row for row in APART if row[1] != split]
    with pytest.raises(UserError, match=rf"no image is left for .*{split}"):
        check_manifest(table(*rows))


def test_image_ids_are_unique() -> None:
    with pytest.raises(UserError, match="same image_id"):
        check_manifest(table(*APART).assign(image_id="0000"))


def test_images_per_subject_by_hand() -> None:
    rows = (("a", "train"), ("b", "test"), ("a", "train"), ("c", "train"), *[("b", "test")] * 3)
    assert images_per_subject(table(*rows)).tolist() == [1, 2, 1, 0, 2, 2, 2]


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    # Digits alone must stay text: 0000 is an identifier, not nothing.
    written = check_manifest(table(*APART))
    written.to_csv(tmp_path / "manifest.csv", index=False)
    read = read_manifest(tmp_path / "manifest.csv")
    for column in ("image_id", "path", "subject_id", "split", "label_name", "width"):
        assert read[column].tolist() == written[column].tolist()
    pd.testing.assert_series_equal(read["label"], written["label"])
