"""What is published about a data set: ``data_manifests/<kind>.yaml``, typed and closed.

A manifest says which files to fetch and where, how to know that they are whole, and what a folder
that holds the set looks like. A size or checksum that nobody published stands as null: what is
unknown is then verified by what a copy must hold.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from medvq.config import Positive, StrictModel
from medvq.config_file import shipped
from medvq.errors import UserError

FOLDER = shipped("data_manifests")

Checksum = Annotated[str, Field(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")]


class PublishedFile(StrictModel):
    """A file as its publisher offers it."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    addresses: tuple[Annotated[str, Field(pattern="^https?://")], ...] = ()
    """Tried in turn."""
    size: Positive | None = None
    """In bytes, where it is known to the byte."""
    size_about: str
    """For people."""
    checksum: Checksum | None = None
    checksum_unpacked: Checksum | None = None
    """Of what a .gz holds; the same bytes can be compressed in many ways."""
    unpack: bool = False
    other_editions: tuple[str, ...] = ()
    """Archives of the same set that have no open address, unpacked where a user has put one."""

    def complaint(self, path: Path) -> str | None:
        """Say what is wrong with a copy of the file, None for nothing."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size:,} bytes instead of {self.size:,}"
        if wanted := self.checksum:
            with path.open("rb") as stream:
                if (checksum := _checksum(stream, wanted)) != wanted:
                    return f"{checksum} instead of {wanted}"
        if wanted := self.checksum_unpacked:
            try:
                # Hashed as it is read, so that a gzip bomb takes time and no memory.
                with gzip.open(path) as unpacked:
                    checksum = _checksum(unpacked, wanted)
            except (OSError, EOFError, zlib.error):
                return "not a whole gzip file"
            if checksum != wanted:
                return f"{checksum}, unpacked, instead of {wanted}"
        return None

    def __str__(self) -> str:
        size = f"{self.size:,} bytes" if self.size else f"about {self.size_about}"
        sum_unpacked = self.checksum_unpacked and f"{self.checksum_unpacked} unpacked"
        return f"{self.file} ({size}, {self.checksum or sum_unpacked or 'no published checksum'})"


class Part(StrictModel):
    """Files that a copy of the set holds."""

    pattern: str
    """As :meth:`pathlib.Path.glob` takes it, below the folder of the set."""
    count: Positive = 1
    """How many the published set holds at least, over its editions."""
    size: Positive | None = None
    """Of each, in bytes."""
    needed: bool = True
    """Whether the set is of no use without any of them."""


class DataManifest(StrictModel):
    """A published data set."""

    title: str
    address: str
    licence: str
    citation: str
    images: Positive | None = None
    folder: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")] | None = None
    """Another name that the folder of the set may have."""
    files: tuple[PublishedFile, ...] = ()
    parts: tuple[Part, ...] = ()

    def lacking(self, folder: Path) -> tuple[list[str], list[str]]:
        """List what ``folder`` lacks: what the set is of no use without, and all that is published.

        >>> cxr = DataManifest(title="", address="", licence="", citation="",
        ...                    parts=(Part(pattern="**/*.none", count=3),))
        >>> cxr.lacking(FOLDER)
        (['**/*.none (0 of 3)'], ['**/*.none (0 of 3)'])
        """
        needed, published = [], []
        for part in self.parts:
            files = [path for path in folder.glob(part.pattern) if not _hidden(path, folder)]
            complete = sum(part.size in (None, path.stat().st_size) for path in files)
            if complete < part.count:
                published.append(f"{part.pattern} ({complete} of {part.count})")
            if part.needed and not files:
                needed.append(published[-1])
        return needed, published


def data_manifest(kind: str) -> DataManifest:
    """Return the manifest of a published data set.

    Raises
    ------
    UserError
        There is none.
    """
    file = FOLDER / f"{kind}.yaml"
    if not file.is_file():
        raise UserError(f"the data set {kind} has no manifest {file}; install the package anew")
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    # Through JSON, since YAML and JSON both write a tuple as a list.
    return DataManifest.model_validate_json(json.dumps(document))


def _hidden(path: Path, folder: Path) -> bool:
    """Say whether a file is left over from an interrupted run, or macOS's debris."""
    return any(name.startswith(".") for name in path.relative_to(folder).parts)


def _checksum(stream: BufferedReader | gzip.GzipFile, like: str) -> str:
    kind = like.partition(":")[0]
    digest = hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False))
    return f"{kind}:{digest.hexdigest()}"
