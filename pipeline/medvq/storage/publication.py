"""Folders and files that are there whole or not at all: written aside, synced and renamed.

A folder is written as ``<name>.partial``, under a lock, and renamed when it is done. The one before
is ``<name>.replaced`` until then, so that a run that is killed loses neither.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from medvq.errors import UserError

_OBSTRUCTED = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
_PUBLICATION = 10.0  # seconds that the renaming at the end of another run may take


def partial_folder(folder: Path) -> Path:
    """Return the folder that is written before it is renamed to ``folder``."""
    return folder.with_name(f"{folder.name}.partial")


def writing_lock(partial: Path) -> Path:
    """Return the file that is locked while a partial folder is written."""
    return partial.with_name(f".{partial.name.removesuffix('.partial')}.lock")


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Make the partial folder of ``folder``, locked against a second run.

    Raises
    ------
    UserError
        Another run is writing the same artifact, or something else has the name of what is written.
    """
    with unobstructed(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another run is writing {folder}; wait for it, or stop it and start again"
            ) from error
        try:
            _mend(folder)
            if folder.is_symlink() and not folder.exists():
                raise obstruction(folder)
            aside = partial_folder(folder)
            aside.mkdir(exist_ok=True)
            yield aside
        finally:
            lock.release()


@contextmanager
def unobstructed(folder: Path) -> Iterator[None]:
    """Turn the error of what has the name of a file or folder that is written into the user's.

    Parameters
    ----------
    folder : that MedVQ alone writes to, so that what stands in the way can be named.

    Raises
    ------
    UserError
        A file is in the place of a folder, a folder in that of a file, or a link leads nowhere.
    """
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename  # of a renaming the target is what is obstructed
        if error.errno not in _OBSTRUCTED or not isinstance(name, str):
            raise
        if not Path(name).is_relative_to(folder):
            raise
        raise obstruction(Path(name)) from error


def obstruction(path: Path) -> UserError:
    """Return the error of what makes ``path`` unusable: a parent that is no folder, or itself."""
    places = [*reversed(path.parents), path]
    place = next((one for one in places if os.path.lexists(one) and not one.is_dir()), path)
    if place.is_symlink() and not place.exists():
        return UserError(
            f"{place} is a link that leads nowhere; let it lead to a folder, or remove it, then "
            "run again"
        )
    kind = "folder" if place.is_dir() else "file"
    return UserError(
        f"{place} is a {kind}, in the place of what MedVQ writes there; remove or rename it, then "
        "run again"
    )


def _lock(folder: Path) -> FileLock:
    return FileLock(writing_lock(partial_folder(folder)))


def exchange(aside: Path, folder: Path) -> None:
    """Rename ``aside`` to ``folder``; what was there is put back where that fails."""
    replaced = _replaced(folder)
    try:
        if folder.exists():
            folder.rename(replaced)
        aside.rename(folder)
    except BaseException:
        _mend(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put back what a killed publication had renamed; one that is at work is waited for."""
    if _replaced(folder).exists():
        with suppress(Timeout), _lock(folder).acquire(timeout=_PUBLICATION):
            _mend(folder)


def _mend(folder: Path) -> None:
    """Put back what a publication that was killed had renamed, or delete it where it is done."""
    replaced = _replaced(folder)
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        replaced.rename(folder)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.replaced")


def point_latest(folder: Path) -> None:
    """Let the symbolic link ``latest`` beside ``folder`` name it.

    Raises
    ------
    UserError
        A folder has its name, as where artifacts were copied with what links name.
    """
    link = folder.parent / "latest"
    if link.is_symlink() and link.readlink() == Path(folder.name):
        return
    if link.is_dir() and not link.is_symlink():
        raise UserError(
            f"{link} is a folder and is to be a link, which some ways of copying turn into a copy "
            "of what it names: remove or rename it, then run again"
        )
    for left in folder.parent.glob(".latest-*"):  # by a run that was killed
        left.unlink(missing_ok=True)
    fresh = folder.parent / f".latest-{os.getpid()}"
    # Another run may clear it or make it: that run lets the link name its own.
    with suppress(FileNotFoundError, FileExistsError):
        fresh.symlink_to(folder.name, target_is_directory=True)
        fresh.replace(link)


def write_bytes(file: Path, content: bytes) -> None:
    """Write aside and rename, so that nobody ever reads half a file; an error leaves no part.

    Of several processes that write one file the last one wins.
    """
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        sync(aside)
        aside.replace(file)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Have the disk write a file or folder before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems, of networks and of virtual machines, sync no folders.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
