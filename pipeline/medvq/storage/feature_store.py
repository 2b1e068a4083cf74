"""The feature store: Parquet tables with one row per image and one list column per feature set.

A table is a folder of Parquet files, which ``pandas.read_parquet`` reads as one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
from numpy.typing import NDArray

from medvq.method.collectives import rank, world_size

KEYS = ("image_id", "subject_id", "split", "label")
MORE_KEYS = ("target", "folds")
FEATURES = "features.parquet"
VERSIONS = "versions.parquet"
_METADATA = b"medvq"
_MOST_PARTS = 64


class StoreWriter:
    """Writes a table batch by batch, aside, and renames it when it is whole; of no rows, no table.

    A table is a folder of at most 64 parts, each of as many batches. Of several processes each
    writes the parts that are its own, the very bytes that one process writes. A batch is encoded in
    a thread, while the next is made.

    Parameters
    ----------
    table : its folder.
    metadata : what the schema says of its making: model, fingerprint, shapes.
    batches : how often :meth:`takes_next` will be asked.
    """

    def __init__(self, table: Path, metadata: Mapping[str, Any], batches: int = 1) -> None:
        self.table = table
        self.aside = table.with_name(f".{table.name}")
        self.metadata = {_METADATA: json.dumps(metadata, sort_keys=True).encode()}
        self.batches_of_part = max(1, -(-batches // _MOST_PARTS))
        self.batches = self.part = 0
        self.writer: pq.ParquetWriter | None = None
        self.thread = ThreadPoolExecutor(1, "feature store")
        self.encoding: Future[None] | None = None

    def __enter__(self) -> Self:
        if rank() == 0:
            shutil.rmtree(self.aside, ignore_errors=True)
        self._meet()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.thread:
            self._end_part()
        if kind is not None:
            return
        # Every part is whole; and then the table is.
        self._meet()
        if rank() == 0 and self.aside.exists():
            if self.table.exists():
                shutil.rmtree(self.table)
            self.aside.replace(self.table)
        self._meet()

    def takes_next(self) -> bool:
        """Whether the next batch is this process's to write."""
        part = self.batches // self.batches_of_part
        self.batches += 1
        if part != self.part:
            self._end_part()
            self.part = part
        return part % world_size() == rank()

    def write(self, rows: pd.DataFrame, features: Mapping[str, NDArray[Any]]) -> None:
        """Append rows with their features, each array of shape (len(rows), width)."""
        columns = {name: pa.array(rows[name]) for name in rows.columns}
        for name, values in features.items():
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        table = pa.table(columns).replace_schema_metadata(self.metadata)
        if self.writer is None:
            self.aside.mkdir(exist_ok=True)
            file = self.aside / f"part-{self.part:02d}.parquet"
            # A dictionary of numbers that hardly repeat costs half of the time.
            self.writer = pq.ParquetWriter(
                file, table.schema, compression="zstd", use_dictionary=False
            )
        self._finish()
        self.encoding = self.thread.submit(self.writer.write_table, table)

    def _finish(self) -> None:
        encoding, self.encoding = self.encoding, None
        if encoding is not None:
            encoding.result()

    def _end_part(self) -> None:
        try:
            self._finish()
        finally:
            if self.writer is not None:
                self.writer.close()
            self.writer = None

    def _meet(self) -> None:
        if world_size() > 1:
            dist.barrier()


def parts_of(table: Path) -> list[Path]:
    """The Parquet files of a table, in the order of its rows."""
    # What earlier versions wrote is one file.
    return sorted(table.iterdir()) if table.is_dir() else [table]


def _schema(table: Path) -> pa.Schema:
    return pq.read_schema(parts_of(table)[0])


def _read(table: Path, columns: list[str]) -> pa.Table:
    return pa.concat_tables(pq.read_table(part, columns=columns) for part in parts_of(table))


def read_metadata(table: Path) -> dict[str, Any]:
    """What the schema of a table says of its making."""
    metadata = _schema(table).metadata or {}
    return dict(json.loads(metadata[_METADATA]))


def read_keys(table: Path, *more: str) -> pd.DataFrame:
    """The key columns (and ``more``) of a table, without its features.

    Of :data:`MORE_KEYS` those that the data set has: a number to predict, official label draws.
    """
    there = [name for name in MORE_KEYS if name in _schema(table).names]
    keys: pd.DataFrame = _read(table, [*KEYS, *there, *more]).to_pandas()
    return keys


def read_feature(table: Path, name: str) -> NDArray[Any]:
    """One feature set as an array (rows, width); codes keep their integer type."""
    column = _read(table, [name]).column(name).combine_chunks()
    width = column.type.list_size
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return np.asarray(values, np.float32 if values.dtype.kind == "f" else values.dtype)


def feature_names(table: Path) -> dict[str, int]:
    """Names and widths of the list columns of a table."""
    return {
        field.name: field.type.list_size
        for field in _schema(table)
        if pa.types.is_fixed_size_list(field.type)
    }
