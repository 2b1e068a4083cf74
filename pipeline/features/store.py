"""The feature store: Parquet tables with one row per image and one list column per feature set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
from numpy.typing import NDArray

from pipeline.models.collective import rank, world

KEYS = ("image_id", "subject_id", "split", "label")
MORE_KEYS = ("target", "folds")
FEATURES = "features.parquet"
VERSIONS = "versions.parquet"
_METADATA = b"medvq"


class StoreWriter:
    """Writes a table batch by batch, aside, and renames it when it is whole; of no rows, no table.

    Of several processes each writes every so many batches into an Arrow file of its own;
    the first then encodes them all, in order, into the very bytes that one process writes.

    Parameters
    ----------
    file : the table.
    metadata : what the schema says of its making: model, fingerprint, shapes.
    """

    def __init__(self, file: Path, metadata: Mapping[str, Any]) -> None:
        self.file = file
        self.aside = self._part(rank())
        self.batches = 0
        self.metadata = {_METADATA: json.dumps(metadata, sort_keys=True).encode()}
        self.writer: pq.ParquetWriter | pa.RecordBatchFileWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.writer is not None:
            self.writer.close()
        nothing = self.writer is None if world() == 1 else not self.batches
        if kind is not None or nothing:
            return
        if world() > 1:
            # Every part is whole; and then the table is.
            dist.barrier()
            if rank() == 0:
                self._join()
            dist.barrier()
        if rank() == 0:
            self.aside.replace(self.file)

    def takes_next(self) -> bool:
        """Whether the next batch is this process's to write."""
        self.batches += 1
        return (self.batches - 1) % world() == rank()

    def write(self, rows: pd.DataFrame, features: Mapping[str, NDArray[Any]]) -> None:
        """Append rows with their features, each array of shape (len(rows), width)."""
        columns = {name: pa.array(rows[name]) for name in rows.columns}
        for name, values in features.items():
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        table = pa.table(columns).replace_schema_metadata(self.metadata)
        if self.writer is None:
            self.writer = self._open(table.schema)
        self.writer.write_table(table)

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter | pa.RecordBatchFileWriter:
        if world() == 1:
            return _encoder(self.aside, schema)
        quick = pa.ipc.IpcWriteOptions(compression="lz4")
        return pa.ipc.new_file(str(self.aside), schema, options=quick)

    def _part(self, number: int) -> Path:
        return self.file.with_name(f".{self.file.name}" + f".{number}" * (world() > 1))

    def _join(self) -> None:
        paths = [self._part(number) for number in range(min(world(), self.batches))]
        parts = [pa.ipc.open_file(pa.memory_map(str(path))) for path in paths]
        self.aside = self.file.with_name(f".{self.file.name}")
        with _encoder(self.aside, parts[0].schema) as joined:
            for number in range(self.batches):
                batch, part = divmod(number, len(parts))
                joined.write_table(pa.Table.from_batches([parts[part].get_batch(batch)]))
        for path in paths:
            path.unlink()


def _encoder(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # A dictionary of numbers that hardly repeat costs half of the time and a fifth of the size.
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False)


def read_metadata(file: Path) -> dict[str, Any]:
    """What the schema of a table says of its making."""
    metadata = pq.read_schema(file).metadata or {}
    return dict(json.loads(metadata[_METADATA]))


def read_keys(file: Path, *more: str) -> pd.DataFrame:
    """The key columns (and ``more``) of a table, without its features.

    Of :data:`MORE_KEYS` those that the data set has: a number to predict, official label draws.
    """
    there = [name for name in MORE_KEYS if name in pq.read_schema(file).names]
    table: pd.DataFrame = pq.read_table(file, columns=[*KEYS, *there, *more]).to_pandas()
    return table


def read_feature(file: Path, name: str) -> NDArray[Any]:
    """One feature set as an array (rows, width); codes keep their integer type."""
    column = pq.read_table(file, columns=[name]).column(name).combine_chunks()
    width = column.type.list_size
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return np.asarray(values, np.float32 if values.dtype.kind == "f" else values.dtype)


def feature_names(file: Path) -> dict[str, int]:
    """Names and widths of the list columns of a table."""
    return {
        field.name: field.type.list_size
        for field in pq.read_schema(file)
        if pa.types.is_fixed_size_list(field.type)
    }
