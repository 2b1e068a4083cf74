"""Archives from elsewhere, unpacked so that they can do no harm.

Nothing is written outside the folder, nothing but plain files and folders is made, and an archive
that swells beyond reason is refused before it fills the disk. An archive is unpacked as a whole or
not at all: aside first, then renamed.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Self

from tqdm import tqdm

from medvq.errors import UserError

# Images are compressed already: an archive of them hardly swells. Small archives may swell more.
MAX_RATIO = 100
_SMALL = 1 << 20
# More than any data set that is read here.
MAX_BYTES = 1 << 40
MAX_FILES = 5_000_000

_CHUNK = 1 << 20
UNPACKED = ".unpacked"
"""The folder of what is whole and only has to be moved to its place."""
_CLASHES = (FileExistsError, IsADirectoryError, NotADirectoryError)
# What is no fault of the archive.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class BadArchive(UserError):
    """An archive that is broken, or holds what no data set should."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or (compressed) tar into ``folder``; macOS's own debris is left out.

    Raises
    ------
    BadArchive
        A name leads out of the folder, is too long or that of two members, a member is a link, a
        device or encrypted, a checksum of the archive's own fails, or it unpacks to more than
        ``MAX_RATIO`` times its size.
    UserError
        The disk is too small, or what the archive holds is in the folder already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finish_unpacking(folder)
    aside = folder / ".unpacking"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        try:
            _unpack(archive, aside)
        except UserError:
            raise
        except Exception as error:  # a file from elsewhere can break the parsers in any way
            raise _bad(archive, error) from error
        for entry in aside.iterdir():
            if (folder / entry.name).exists():
                raise UserError(
                    f"{archive.name} holds {entry.name}, and {folder / entry.name} is there "
                    "already but lacks files; move it away, then run again"
                )
        aside.rename(folder / UNPACKED)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    finish_unpacking(folder)


def finish_unpacking(folder: Path) -> None:
    """Move what was unpacked as a whole to its place, also what a killed run has left."""
    if (unpacked := folder / UNPACKED).is_dir():
        for entry in unpacked.iterdir():
            entry.rename(folder / entry.name)
        unpacked.rmdir()


def _bad(archive: Path, error: Exception) -> Exception:
    """Return the error to raise for one that a library raised."""
    if isinstance(error, OSError):
        if error.errno in _OF_THE_DISK:
            return error
        if error.errno == errno.ENAMETOOLONG:
            return BadArchive(f"{archive.name} holds a name that is too long for this disk")
    if isinstance(error, _CLASHES):
        return BadArchive(f"{archive.name} holds two members of the same name: refused")
    return BadArchive(f"{archive.name} is broken ({type(error).__name__})")


def _unpack(archive: Path, aside: Path) -> None:
    packed = archive.stat().st_size
    allowed = min(MAX_BYTES, MAX_RATIO * packed + _SMALL)
    free = shutil.disk_usage(aside).free
    extract = _extract_zip if zipfile.is_zipfile(archive) else _extract_tar
    total = files = 0
    with tqdm(desc=f"unpacking {archive.name}", unit="B", unit_scale=True) as progress:
        # Neither library writes more of a file than the size that the archive states.
        for size in extract(archive, aside):
            total, files = total + size, files + 1
            if total > allowed or files > MAX_FILES:
                raise BadArchive(
                    f"{archive.name} ({packed:,} bytes) unpacks to more than "
                    f"{allowed:,} bytes or {MAX_FILES:,} files: refused"
                )
            if total > free:
                raise UserError(
                    f"no space to unpack {archive.name} in {aside.parent}: "
                    f"more than the {free:,} free bytes"
                )
            progress.update(size)


def _extract_zip(archive: Path, aside: Path) -> Iterator[int]:
    """Extract file after file; the size of each is yielded before it is written."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BadArchive(f"{archive.name} holds a link or a device: refused")
            if member.flag_bits & 1:
                raise BadArchive(f"{archive.name} is encrypted")
            if not member.is_dir() and not _is_debris(path := _safe(member.filename, archive)):
                _check_new(aside / path)
                yield member.file_size
                member.filename = str(path)
                opened.extract(member, aside)


def _extract_tar(archive: Path, aside: Path) -> Iterator[int]:
    """Extract file after file; the size of each is yielded before it is written."""
    with tarfile.open(archive, tarinfo=_Header) as opened:
        for member in opened:
            if not (member.isreg() or member.isdir()):
                raise BadArchive(f"{archive.name} holds a link or a device: refused")
            if member.isreg() and not _is_debris(path := _safe(member.name, archive)):
                _check_new(aside / path)
                yield member.size
                opened.extract(member.replace(name=str(path), deep=False), aside, filter="data")
        # To its end, where a compressed file has its checksum.
        while chunk := opened.fileobj.read(_CHUNK) if opened.fileobj else b"":
            yield len(chunk)


class _Header(tarfile.TarInfo):
    """A header that is whole; tarfile takes a damaged one for the end and drops what follows."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            # The regular end, by a class that tarfile does not document.
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(str(error)) from error


def _check_new(path: Path) -> None:
    """Raise where a member was unpacked to ``path``, which the disk may call the same."""
    if os.path.lexists(path):
        raise FileExistsError


def _safe(name: str, archive: Path) -> PurePosixPath:
    """Return the name as a path below the folder; the libraries would silently change a bad one."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name or not path.name:
        raise BadArchive(f"{archive.name} holds a name that leads out of its folder: refused")
    return path


def _is_debris(path: PurePosixPath) -> bool:
    return "__MACOSX" in path.parts or path.name.startswith("._") or path.name == ".DS_Store"
