"""The files that rows of a table name, as people write them."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterable, Set
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from medvq.datasets.classes import plain
from medvq.errors import Notice
from medvq.images.formats import is_dicom, may_show
from medvq.wording import counted


class FileNames:
    """Finds files below a folder by the names in a table.

    Parameters
    ----------
    folder : holds the files.
    paths : of the files that it holds, relative to it.
    """

    def __init__(self, folder: Path, paths: Iterable[str]) -> None:
        self._folder = folder
        self._paths = paths
        self._guesses = 0

    def find(self, name: str) -> str | None:
        """Return the path of the file that ``name`` stands for, None where that is not clear.

        A name that is no path as it stands may differ from one in capitals or in the encoding of
        its letters, lack the suffix or the folders, begin above the folder, or have %20 for a
        space, if there is only one such file.
        """
        for path in (PurePosixPath(name), PurePosixPath(name.replace("\\", "/"))):
            inside = not path.is_absolute() and ".." not in path.parts
            if inside and is_file(self._folder / path):
                return path.as_posix()
            if (elsewhere := self._below(path)) is not None:
                self._guesses += 1
                return elsewhere
        found = self._index.get(_plain(name.replace("\\", "/").removeprefix("./")), set())
        if len(found) != 1:
            return None
        self._guesses += 1
        return next(iter(found))

    def _below(self, path: PurePosixPath) -> str | None:
        """Return a file that is named from above the folder, or with its name escaped (%20)."""
        above = [part for part in (self._folder.absolute().as_posix(), self._folder.name) if part]
        for candidate in (path, PurePosixPath(unquote(str(path)))):
            for start in above:
                if candidate.is_relative_to(start):
                    inside = candidate.relative_to(start)
                    if ".." not in inside.parts and is_file(self._folder / inside):
                        return inside.as_posix()
            is_inside = not candidate.is_absolute() and ".." not in candidate.parts
            if candidate != path and is_inside and is_file(self._folder / candidate):
                return candidate.as_posix()
        return None

    def hint(self, name: str, taken: Set[str]) -> str:
        """Return a question for the name that was meant; empty where none is near.

        Parameters
        ----------
        taken : paths that other rows name, and which are therefore not meant.
        """
        with suppress(OSError, ValueError):  # no name that a folder may have
            if (self._folder / name).is_dir():
                return ": it names a folder; give each of its files a row"
        last = name.replace("\\", "/").rpartition("/")[2]
        free = {written: paths - taken for written, paths in self._index.items() if paths - taken}
        alike = [written for written in free if plain(written) == plain(last)]
        near = [
            *alike,  # 001, and 1 of a sheet
            *get_close_matches(_plain(name), free, n=1, cutoff=0.8),
            *get_close_matches(_plain(last), free, n=1, cutoff=0.8),
        ]
        found = sorted(free[near[0]]) if near else []
        if not found or not may_show(found[0], dicom=is_dicom(self._folder / found[0])):
            return ""
        if len(found) > 1:
            return f": {len(found)} files may be meant; give the folder and the suffix"
        return f"; did you mean '{found[0]}'?"

    def warn_of_guesses(self, table: str) -> None:
        """Say how many names were no paths as they stood."""
        if self._guesses:
            warnings.warn(
                Notice(
                    f"{table}: {counted(self._guesses, 'row')} without the folder or suffix of the "
                    "file, or with other folders, letters or capitals; each fits one file only"
                ),
                stacklevel=2,
            )

    @cached_property
    def _index(self) -> dict[str, set[str]]:
        index: dict[str, set[str]] = {}
        for path in self._paths:
            for whole in _without_suffixes(_plain(path)):
                for name in (whole, whole.rpartition("/")[2]):
                    index.setdefault(name, set()).add(path)
        return index


def _without_suffixes(path: str) -> list[str]:
    """Return a path with and without its suffix; digits are none, but the end of a UID.

    >>> _without_suffixes("a/sub-01.nii.gz"), _without_suffixes("1.2.840.7")
    (['a/sub-01.nii.gz', 'a/sub-01.nii', 'a/sub-01'], ['1.2.840.7'])
    """
    paths = [path]
    while (suffix := PurePosixPath(path).suffix) and not suffix[1:].isdigit():
        path = path.removesuffix(suffix)
        paths.append(path)
        if suffix != ".gz":
            break
    return paths


def is_file(path: Path) -> bool:
    """Say whether a path names a file; also of what is no name that a file may have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _plain(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        name = os.fsencode(name).decode("latin-1")
    return unicodedata.normalize("NFC", name).casefold()
