"""The feature store: what is written is what is read, by MedVQ and by plain pandas."""

import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from medvq.storage.feature_store import (
    CodeLevel,
    FeatureStoreMetadata,
    StoreWriter,
    feature_names,
    parts_of,
    read_feature,
    read_keys,
    read_metadata,
)
from numpy.typing import NDArray

METADATA = FeatureStoreMetadata(
    "abc", "def", [CodeLevel(70_000, [2, 2]), CodeLevel(8, [4, 4])], 2, ["Mädchen"], ""
)
N = 7
KEYS = pd.DataFrame(
    {
        "image_id": [f"{number:03d}" for number in range(N)],
        "subject_id": ["a", "a", "b", "c", "c", "d", "e"],
        "split": ["train", "train", "test", "train", "train", "validation", "test"],
        "label": pd.array([0, 0, 1, None, 1, 0, 1], dtype="Int64"),
        "folds": ["", "0", "", "0 1", "", "", ""],
    }
)


def make_features() -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(0)
    return {
        "codes_0": rng.integers(0, 60_000, (N, 4)).astype(np.uint16),
        "codes_1": rng.integers(0, 70_000, (N, 2)).astype(np.int32),
        "embedding": rng.normal(size=(N, 3)).astype(np.float32),
        "halved": rng.normal(size=(N, 5)).astype(np.float16),
    }


FEATURES = make_features()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    with StoreWriter(tmp_path / "features.parquet", METADATA) as store:
        for rows in ([0, 1, 2], [3, 4, 5], [6]):
            store.write(KEYS.iloc[rows], {name: set_[rows] for name, set_ in FEATURES.items()})
    return tmp_path / "features.parquet"


def test_every_feature_set_reads_back(table: Path) -> None:
    assert feature_names(table) == {"codes_0": 4, "codes_1": 2, "embedding": 3, "halved": 5}
    plain = pd.read_parquet(table)
    assert list(plain) == [*KEYS, *FEATURES]
    for name, written in FEATURES.items():
        read = read_feature(table, name)
        np.testing.assert_array_equal(read, written)
        assert read.dtype == (np.float32 if written.dtype.kind == "f" else written.dtype)
        np.testing.assert_array_equal(np.stack(list(plain[name])), written)


def test_keys_keep_their_order_and_their_gaps(table: Path) -> None:
    read = read_keys(table)
    assert list(read) == list(KEYS)
    pd.testing.assert_frame_equal(read, KEYS, check_dtype=False)
    assert list(read_keys(table, "embedding")) == [*KEYS, "embedding"]


def test_metadata_reads_back(table: Path) -> None:
    assert read_metadata(table) == METADATA


def break_off(table: Path) -> None:
    with pytest.raises(OSError, match="disk full"), StoreWriter(table, METADATA) as store:
        store.write(KEYS[::-1], {name: values[::-1] for name, values in FEATURES.items()})
        raise OSError("disk full")


def test_an_interrupted_table_is_none_and_leaves_the_one_before(tmp_path: Path) -> None:
    table = tmp_path / "features.parquet"
    break_off(table)
    assert not table.exists()
    for order in (1, -1):
        with StoreWriter(table, METADATA) as store:
            store.write(KEYS[::order], {k: values[::order] for k, values in FEATURES.items()})
        assert read_keys(table)["image_id"].tolist() == KEYS["image_id"].tolist()[::order]
        before = [part.read_bytes() for part in parts_of(table)]
        break_off(table)
        assert [part.read_bytes() for part in parts_of(table)] == before


@pytest.mark.parametrize("waiting", [False, True], ids=["while computing", "while waiting"])
def test_an_interruption_lets_the_batch_that_is_being_written_end(
    waiting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted, events = threading.Event(), list[str]()

    def write_table(*_: object) -> None:
        assert interrupted.wait(60)
        events.append("written")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    usual_close = pq.ParquetWriter.close

    def close(writer: pq.ParquetWriter) -> None:
        events.append("closed")
        usual_close(writer)

    monkeypatch.setattr(pq.ParquetWriter, "close", close)
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "table", METADATA) as store:
        store.write(KEYS, FEATURES)
        pending = store.pending
        store.pending = None  # as between two lines of what waits for it
        interrupted.set()
        if not waiting:
            raise KeyboardInterrupt
        store.pending = pending
        monkeypatch.setattr(pending, "result", mock.Mock(side_effect=KeyboardInterrupt))
    assert events[:2] == ["written", "closed"]


def test_a_table_without_rows_is_not_written(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "table", METADATA) as store:
        assert store.takes_next()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("batches", "expected"), [(1, 1), (7, 7), (64, 64), (65, 33), (500, 63)])
def test_a_table_has_at_most_64_parts_and_keeps_its_order(
    tmp_path: Path, batches: int, expected: int
) -> None:
    with StoreWriter(tmp_path / "table", METADATA, batches) as store:
        for number in range(batches):
            assert store.takes_next()
            store.write(KEYS[:1], {"number": np.full((1, 1), number)})
    assert len(parts_of(tmp_path / "table")) == expected
    assert read_feature(tmp_path / "table", "number")[:, 0].tolist() == list(range(batches))
