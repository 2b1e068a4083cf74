"""The files of a folder: those that a data set may be made of, and why others are not."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HIDDEN = "hidden file or folder"
SYSTEM = "left by an operating system or a server"
BROKEN_LINK = "symbolic link that leads nowhere"
REPEATED_LINK = "symbolic link to what is listed already"
CLOSED = "folder that cannot be opened"
NOT_FETCHED = "file that iCloud has not downloaded"
OWN = "written by MedVQ itself"
NO_FILE = "neither a file nor a folder"

_SYSTEM_NAMES = frozenset(
    {
        "@eadir",
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#snapshot",
        "__macosx",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "network trash folder",
        "temporary items",
        "desktop.ini",
        "icon\r",
    }
)

# Unicode's categories of control characters and of ends of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Zl", "Zp"})

# One of these is in every artifact, and in the folder of all artifacts.
_OWN_FILES = frozenset({"stage.json", "mlflow.db"})


@dataclass
class Walk:
    """What a folder holds.

    Attributes
    ----------
    files : relative to the folder, with slashes, sorted. Bytes of a name that are no UTF-8 stand
        as lone surrogates (PEP 383).
    skipped : how many files are not in ``files``, by reason; a folder that cannot be opened and a
        link to a folder that is listed elsewhere count once.
    repeats : files that are links to listed ones, with those.
    """

    files: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    repeats: list[tuple[str, str]] = field(default_factory=list)


def walk(folder: Path, why_not: Callable[[Path], str]) -> Walk:
    """List the files in ``folder`` at any depth.

    Symbolic links are followed, but each folder and each file that a link leads to is listed once:
    what has a place of its own in ``folder`` is listed there.

    Parameters
    ----------
    why_not : why a file is not to be listed; empty for a file that is.
    """
    walker = _Walker(folder, why_not)
    walker.enter(folder)
    while walker.folder_links:
        walker.enter(walker.folder_links.popleft())
    # Last, since a link to a file in one of those folders is no place of its own.
    for link in walker.file_links:
        walker.follow(link)
    walker.found.files.sort()
    return walker.found


def shown(path: str) -> str:
    r"""Return a path as tables and messages may print it: in one line.

    Bytes that are no UTF-8 stand as ``\xe9``, ends of lines and control characters as ``\r``.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        mark.encode("unicode_escape").decode() if unicodedata.category(mark) in _UNSEEN else mark
        for mark in text
    )


class _Walker:
    """A walk that is going on: what was found, and the links that are still to be followed."""

    def __init__(self, folder: Path, why_not: Callable[[Path], str]) -> None:
        self.found = Walk()
        self.folder_links: deque[Path] = deque()
        self.file_links: list[Path] = []
        self._folder = folder
        self._why_not = why_not
        self._listed: dict[tuple[int, int], Path] = {}

    def enter(self, top: Path) -> None:
        """List what lies below a folder, and put its links aside."""
        stack = [top]
        while stack:
            current = stack.pop()
            try:
                status = current.stat()
                with os.scandir(current) as opened:
                    entries = list(opened)
            except OSError:
                self.found.skipped[CLOSED] += 1
                continue
            if (status.st_dev, status.st_ino) in self._listed:
                self.found.skipped[REPEATED_LINK] += 1
                continue
            self._listed[status.st_dev, status.st_ino] = current
            if current != self._folder and not _OWN_FILES.isdisjoint(e.name for e in entries):
                self.found.skipped[OWN] += _count_below(current)
                continue
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = Path(entry.path)
                if reason := _set_apart(entry.name):
                    is_folder = entry.is_dir(follow_symlinks=False)
                    self.found.skipped[reason] += _count_below(path) if is_folder else 1
                elif entry.is_symlink():
                    (self.folder_links if path.is_dir() else self.file_links).append(path)
                elif entry.is_dir():
                    stack.append(path)
                else:
                    self._listed[status.st_dev, entry.inode()] = path
                    self._take(path, entry.is_file())

    def follow(self, link: Path) -> None:
        """List the file that a link leads to."""
        try:
            status = link.stat()
        except OSError:
            self.found.skipped[BROKEN_LINK] += 1
            return
        if listed := self._listed.get((status.st_dev, status.st_ino)):
            self.found.skipped[REPEATED_LINK] += 1
            self.found.repeats.append((self._name(link), self._name(listed)))
            return
        self._listed[status.st_dev, status.st_ino] = link
        self._take(link, link.is_file())

    def _take(self, path: Path, is_file: bool) -> None:
        if reason := self._why_not(path) if is_file else NO_FILE:
            self.found.skipped[reason] += 1
        else:
            self.found.files.append(self._name(path))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


def _set_apart(name: str) -> str:
    if name.casefold() in _SYSTEM_NAMES:
        return SYSTEM
    if name.startswith(".") and name.endswith(".icloud"):
        return NOT_FETCHED
    return HIDDEN if name.startswith(".") else ""


def _count_below(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))
