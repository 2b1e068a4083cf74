"""Errors that are the user's to mend: shown as one line, never as a traceback."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_LACKING = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_FAILING = {errno.EIO, errno.ESTALE, errno.ENOTCONN}
_OBSTRUCTED = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_REFUSALS = _FULL | _CLOSED | _LACKING | _FAILING
_NO_SPACE = 1 << 20
"""Free bytes below which a failed write is put down to a full disk."""

_LITTLE_MEMORY = 32 << 20
"""Bytes without which any error is put down to a lack of memory."""


class UserError(Exception):
    """Something outside the program is wrong; the message names it and the mend, in one line."""


class UnreadableImage(Exception):
    """One image cannot be read; the message is its reason in the quarantine table."""


class UnreachableFile(UnreadableImage):
    """The disk did not hand the file over; another time it may, and the image may be fine."""


class Notice(UserWarning):
    """Something that the user should look at and that stops nothing; shown as one line."""


def out_of_memory(error: BaseException) -> str | None:
    """Return the line for an error that comes of too little memory, None for any other."""
    if any(map(_tells_of_memory, _causes(error))) or not _has_memory():
        return (
            "there is too little memory for it; end other programs, or set a smaller batch_size "
            "(pretrain, extract, prior), then run again: what was finished is kept"
        )
    return None


def _tells_of_memory(error: BaseException) -> bool:
    """Say whether an error of Python, of its libraries or of oneDNN is one of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):  # a library is mapped as it is imported
        return "failed to map segment" in str(error)
    texts = ("can't start new thread", "can't allocate memory", "could not create a primitive")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _has_memory() -> bool:
    """Say whether a little memory is left: without it libraries fail in ways of their own."""
    try:
        bytearray(_LITTLE_MEMORY)
    except MemoryError:
        return False
    return True


def refused_by_disk(error: BaseException, *folders: Path) -> str | None:
    """Return the line for an error that the disk is the cause of, None where it is not.

    Parameters
    ----------
    folders : that are written to. A file is never named, since names of others may name patients.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _REFUSALS:
            return _refusal(_folder_of(cause, *folders), os.strerror(cause.errno), cause.errno)
    # Of these only one of a file that is written there is no error of ours.
    if isinstance(error, OSError) and error.errno in _OBSTRUCTED:
        folder = _holder(error, *folders)
        return None if folder is None else _refusal(folder, os.strerror(error.errno), error.errno)
    # torch, SQLite and safetensors raise types of their own.
    if (full := _full(folders)) is not None:
        return _refusal(full, os.strerror(errno.ENOSPC), errno.ENOSPC)
    return None


def _full(folders: Sequence[Path]) -> Path | None:
    """Return the first folder whose disk is full."""
    for folder in folders:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if shutil.disk_usage(existing).free < _NO_SPACE:
            return folder
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _folder_of(error: OSError, *folders: Path) -> Path:
    """Return the one of ``folders`` that an error names a file of, else the first full one."""
    full = _full(folders) if error.errno in _FULL else None
    return _holder(error, *folders) or full or folders[0]


def _holder(error: OSError, *folders: Path) -> Path | None:
    """Return the one of ``folders`` that an error names a file of, None where it names none."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
    files = [Path(name).absolute() for name in names]
    within = (f for f in folders if any(file.is_relative_to(f.absolute()) for file in files))
    return next(within, None)


def _refusal(folder: Path, reason: str, number: int) -> str:
    verb = "write to"
    if number in _FULL:
        mend = "make room there, or choose another disk (OUT, ARTIFACTS, DATA_ROOT)"
    elif number in _CLOSED:
        mend = "allow it, or choose another folder (OUT, ARTIFACTS, DATA_ROOT)"
    elif number in _OBSTRUCTED:
        mend = (
            "remove or rename what has the name of a file or folder that is written there, or "
            "choose another folder (OUT, ARTIFACTS, DATA_ROOT)"
        )
    elif number in _LACKING:
        mend = (
            "artifacts need a file system with locks and symbolic links: choose another folder "
            "(OUT, ARTIFACTS, DATA_ROOT)"
        )
    else:
        verb = "read or write in"
        mend = "see to the disk, or choose another (OUT, ARTIFACTS, DATA_ROOT)"
    return (
        f"cannot {verb} {folder} ({reason.lower()}); {mend}, then run again: "
        "what was finished is kept"
    )
