"""The files of a folder: those that a data set may be made of, and why others are not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HIDDEN = "hidden file or folder"
SYSTEM = "left by an operating system or a server"
BROKEN_LINK = "symbolic link that leads nowhere"
REPEATED_LINK = "symbolic link to what is listed already"
CLOSED = "folder that cannot be opened"
NO_FILE = "neither a file nor a folder"

_SYSTEM_NAMES = frozenset(
    {
        "@eadir",
        "__macosx",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    }
)


@dataclass
class Walk:
    """What a folder holds.

    Attributes
    ----------
    files : relative to the folder, with slashes, sorted. Bytes of a name that are no UTF-8 stand
        as lone surrogates (PEP 383).
    skipped : how many files, or folders that could not be opened, are not in ``files``, by reason.
    """

    files: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def walk(folder: Path, why_not: Callable[[Path], str]) -> Walk:
    """List the files in ``folder`` at any depth.

    Symbolic links are followed, but each folder and each file that a link leads to is listed once:
    what has a place of its own in ``folder`` is listed there.

    Parameters
    ----------
    why_not : why a file is not to be listed; empty for a file that is.
    """
    found = Walk()
    links: list[Path] = []
    listed: set[tuple[int, int]] = set()
    _walk_into(folder, folder, found, why_not, links, listed)
    while links:
        link = links.pop(0)
        try:
            status = link.stat()
        except OSError:
            found.skipped[BROKEN_LINK] += 1
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in listed:
            found.skipped[REPEATED_LINK] += 1
        elif link.is_dir():
            _walk_into(link, folder, found, why_not, links, listed)
        else:
            listed.add(identity)
            _take(link, folder, found, why_not, link.is_file())
    found.files.sort()
    return found


def shown(path: str) -> str:
    r"""Return a path as tables and messages may print it: bytes that are no UTF-8 as ``\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _walk_into(
    top: Path,
    folder: Path,
    found: Walk,
    why_not: Callable[[Path], str],
    links: list[Path],
    listed: set[tuple[int, int]],
) -> None:
    """Add what lies below ``top`` without its links, which are kept for later."""
    stack = [top]
    while stack:
        current = stack.pop()
        try:
            status = current.stat()
            with os.scandir(current) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError:
            found.skipped[CLOSED] += 1
            continue
        listed.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = Path(entry.path)
            if reason := _set_apart(entry.name):
                found.skipped[reason] += _count(entry)
            elif entry.is_symlink():
                links.append(path)
            elif entry.is_dir():
                stack.append(path)
            else:
                listed.add((status.st_dev, entry.inode()))
                _take(path, folder, found, why_not, entry.is_file())


def _take(
    path: Path, folder: Path, found: Walk, why_not: Callable[[Path], str], is_file: bool
) -> None:
    reason = why_not(path) if is_file else NO_FILE
    if reason:
        found.skipped[reason] += 1
    else:
        found.files.append(path.relative_to(folder).as_posix())


def _set_apart(name: str) -> str:
    if name.casefold() in _SYSTEM_NAMES:
        return SYSTEM
    return HIDDEN if name.startswith(".") else ""


def _count(entry: os.DirEntry[str]) -> int:
    """Return how many files a folder holds at any depth; 1 for a file or a link."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(names) for _, _, names in os.walk(entry.path))
