"""The feature store: what is written is what is read, by us and by plain pandas."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from medvq.storage.feature_store import (
    StoreWriter,
    feature_names,
    parts_of,
    read_feature,
    read_keys,
    read_metadata,
)
from numpy.typing import NDArray

METADATA = {"model": "abc", "latent_shape": [2, 2], "codebook_size": 70_000, "name": "Mädchen"}
NUMBER = 7


@pytest.fixture
def keys() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"{number:03d}" for number in range(NUMBER)],
            "subject_id": ["a", "a", "b", "c", "c", "d", "e"],
            "split": ["train", "train", "test", "train", "train", "validation", "test"],
            "label": pd.array([0, 0, 1, None, 1, 0, 1], dtype="Int64"),
        }
    )


@pytest.fixture
def features() -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(0)
    return {
        "codes_0": rng.integers(0, 60_000, (NUMBER, 4)).astype(np.uint16),
        "codes_1": rng.integers(0, 70_000, (NUMBER, 2)).astype(np.int32),
        "embedding": rng.normal(size=(NUMBER, 3)).astype(np.float32),
        "halved": rng.normal(size=(NUMBER, 5)).astype(np.float16),
    }


@pytest.fixture
def file(tmp_path: Path, keys: pd.DataFrame, features: dict[str, NDArray[np.generic]]) -> Path:
    file = tmp_path / "features.parquet"
    with StoreWriter(file, METADATA) as store:
        for rows in ([0, 1, 2], [3, 4, 5], [6]):
            store.write(keys.iloc[rows], {name: table[rows] for name, table in features.items()})
    return file


def test_every_feature_set_reads_back(file: Path, features: dict[str, NDArray[np.generic]]) -> None:
    assert feature_names(file) == {"codes_0": 4, "codes_1": 2, "embedding": 3, "halved": 5}
    for name, written in features.items():
        read = read_feature(file, name)
        np.testing.assert_array_equal(read, written)
        assert read.dtype == (np.float32 if written.dtype.kind == "f" else written.dtype)


def test_plain_pandas_reads_it(
    file: Path, keys: pd.DataFrame, features: dict[str, NDArray[np.generic]]
) -> None:
    table = pd.read_parquet(file)
    assert list(table) == [*keys, *features]
    for name, written in features.items():
        np.testing.assert_array_equal(np.stack(list(table[name])), written)
    assert table["image_id"].tolist() == keys["image_id"].tolist()


def test_keys_keep_their_order_and_their_gaps(file: Path, keys: pd.DataFrame) -> None:
    read = read_keys(file)
    assert list(read) == list(keys)
    assert read["subject_id"].tolist() == keys["subject_id"].tolist()
    assert read["label"].isna().tolist() == keys["label"].isna().tolist()
    assert read["label"].dropna().tolist() == keys["label"].dropna().tolist()


def test_metadata_reads_back(file: Path) -> None:
    assert read_metadata(file) == METADATA


def break_off(file: Path, keys: pd.DataFrame, features: dict[str, NDArray[np.generic]]) -> None:
    with StoreWriter(file, METADATA) as store:
        store.write(keys, features)
        raise OSError("disk full")


def test_an_interrupted_table_is_none(
    tmp_path: Path, keys: pd.DataFrame, features: dict[str, NDArray[np.generic]]
) -> None:
    with pytest.raises(OSError, match="disk full"):
        break_off(tmp_path / "features.parquet", keys, features)
    assert not (tmp_path / "features.parquet").exists()


def test_an_interrupted_table_leaves_the_one_before(
    file: Path, keys: pd.DataFrame, features: dict[str, NDArray[np.generic]]
) -> None:
    before = [part.read_bytes() for part in parts_of(file)]
    with pytest.raises(OSError, match="disk full"):
        break_off(file, keys[::-1], features)
    assert [part.read_bytes() for part in parts_of(file)] == before


def test_a_table_takes_the_place_of_the_one_before_and_of_one_broken_off(
    file: Path, keys: pd.DataFrame, features: dict[str, NDArray[np.generic]]
) -> None:
    with pytest.raises(OSError, match="disk full"):
        break_off(file, keys, features)
    with StoreWriter(file, METADATA) as store:
        store.write(keys[::-1], {name: values[::-1] for name, values in features.items()})
    assert read_keys(file)["image_id"].tolist() == keys["image_id"].tolist()[::-1]


@pytest.mark.parametrize(("batches", "expected"), [(1, 1), (7, 7), (64, 64), (65, 33), (500, 63)])
def test_a_table_has_at_most_64_parts_and_keeps_its_order(
    tmp_path: Path, keys: pd.DataFrame, batches: int, expected: int
) -> None:
    with StoreWriter(tmp_path / "table", METADATA, batches) as store:
        for number in range(batches):
            assert store.takes_next()
            store.write(keys[:1], {"number": np.full((1, 1), number)})
    assert len(parts_of(tmp_path / "table")) == expected
    assert read_feature(tmp_path / "table", "number")[:, 0].tolist() == list(range(batches))


def test_a_table_of_one_file_is_read_as_one_of_parts(file: Path, tmp_path: Path) -> None:
    (part,) = parts_of(file)
    part.rename(tmp_path / "single.parquet")
    assert feature_names(tmp_path / "single.parquet")["embedding"] == 3
    assert len(read_keys(tmp_path / "single.parquet")) == NUMBER
