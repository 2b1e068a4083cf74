"""The feature store: Parquet tables with one row per image and one list column per feature set.

A table is a folder of Parquet files, which ``pandas.read_parquet`` reads as one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from medvq.distributed import barrier, rank, world_size

KEYS = ("image_id", "subject_id", "split", "label")
OPTIONAL_KEYS = ("target", "folds")
"""Columns that some data sets have: a number to predict, official label subsets."""
FEATURES = "features.parquet"
VERSIONS = "versions.parquet"
SWAPPED = "swapped"
"""The name of acquisition-swapped copies in the column ``version`` of :data:`VERSIONS`."""
_METADATA = b"medvq"
_MAX_PARTS = 64
"""Files of a table at most: enough to share among processes, few enough to open quickly."""


def augmented(number: int) -> str:
    """Return the name of a random version in the column ``version``."""
    return f"augmented-{number}"


@dataclass(frozen=True)
class CodeLevel:
    """The size of a codebook, and the grid of its codes in an image, which columns flatten."""

    codebook_size: int
    latent_shape: list[int]


@dataclass(frozen=True)
class FeatureStoreMetadata:
    """What the schema of a table says of its making.

    Attributes
    ----------
    model, data : fingerprints of the artifacts of ``pretrain`` and ``ingest``.
    levels : of codes, coarsest first: ``codes_0``, ``codes_1``, ...
    grid : cells along each axis that features are pooled to.
    classes : names of the labels 0, 1, ...
    target : name of the number to predict; empty where there is none.
    """

    model: str
    data: str
    levels: list[CodeLevel]
    grid: int
    classes: list[str]
    target: str


class StoreWriter:
    """Writes a table batch by batch into a folder aside, and renames it when it is complete.

    A table has at most 64 parts of as many batches each. Of several processes each writes some of
    the parts, the very bytes that a single process would write. A batch is compressed in a thread
    while the next is computed. Where no row is written, no table is.

    Parameters
    ----------
    table : its folder.
    batches : how often :meth:`takes_next` will be asked.
    """

    def __init__(self, table: Path, metadata: FeatureStoreMetadata, batches: int = 1) -> None:
        self.table = table
        self.aside = table.with_name(f".{table.name}")
        self.metadata = {_METADATA: json.dumps(asdict(metadata), sort_keys=True).encode()}
        self.batches_of_part = max(1, -(-batches // _MAX_PARTS))
        self.batches = self.part = 0
        self.writer: pq.ParquetWriter | None = None
        self.thread = ThreadPoolExecutor(1, "feature store")
        self.pending: Future[None] | None = None

    def __enter__(self) -> Self:
        if rank() == 0:
            shutil.rmtree(self.aside, ignore_errors=True)
        barrier()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._end_part()
        finally:
            self._close()
        if kind is not None:
            return
        barrier()  # The table is complete once every process has ended its parts.
        if rank() == 0 and self.aside.exists():
            if self.table.exists():
                shutil.rmtree(self.table)
            self.aside.replace(self.table)
        barrier()

    def takes_next(self) -> bool:
        """Return whether this process is to write the next batch."""
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
        self._wait()
        self.pending = self.thread.submit(self.writer.write_table, table)

    def _wait(self) -> None:
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _end_part(self) -> None:
        self._wait()
        if self.writer is not None:
            self.writer.close()
        self.writer = None

    def _close(self) -> None:
        """End the thread, and then a file that was left open.

        An interruption may come between any two lines, while the thread is writing: a file that is
        closed under it ends the process.
        """
        self.thread.shutdown()
        if self.writer is not None:
            with suppress(OSError, pa.ArrowException):  # what is written is not used
                self.writer.close()


def parts_of(table: Path) -> list[Path]:
    """Return the Parquet files of a table, in the order of its rows."""
    return sorted(table.glob("part-*.parquet"))


def read_metadata(table: Path) -> FeatureStoreMetadata:
    """Read what the schema of a table says of its making."""
    return TypeAdapter(FeatureStoreMetadata).validate_json(_schema(table).metadata[_METADATA])


def read_keys(table: Path, *more: str) -> pd.DataFrame:
    """Read the key columns of a table, without its features.

    They are :data:`KEYS`, those of :data:`OPTIONAL_KEYS` that the data set has, and ``more``.
    """
    optional = [name for name in OPTIONAL_KEYS if name in _schema(table).names]
    keys: pd.DataFrame = _read(table, [*KEYS, *optional, *more]).to_pandas()
    return keys


def read_feature(table: Path, name: str) -> NDArray[Any]:
    """Read a feature set as an array (rows, width): float32, or the integer type of codes."""
    column = _read(table, [name]).column(name).combine_chunks()
    width = column.type.list_size
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return np.asarray(values, np.float32 if values.dtype.kind == "f" else values.dtype)


def feature_names(table: Path) -> dict[str, int]:
    """Return names and widths of the feature sets of a table."""
    return {
        field.name: field.type.list_size
        for field in _schema(table)
        if pa.types.is_fixed_size_list(field.type)
    }


def _schema(table: Path) -> pa.Schema:
    return pq.read_schema(parts_of(table)[0])


def _read(table: Path, columns: list[str]) -> pa.Table:
    return pa.concat_tables(pq.read_table(part, columns=columns) for part in parts_of(table))
