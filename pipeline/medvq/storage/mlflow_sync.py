"""Send to MLflow what could not be sent when it was reported."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from medvq.errors import UserError
from medvq.storage.journal import FILE, Journal
from medvq.storage.mlflow_sender import KEPT, Sender, now, relocate
from medvq.storage.publication import writing_lock
from medvq.wording import counted

_MOST_WORDS = 200
# Errors of the way to a server: their messages hold its address, which may hold a password.
_OF_THE_WAY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"}


def sync(artifacts: Path) -> tuple[int, int]:
    """Send the journals that were kept; return how many were sent, and how many events.

    Among them those of stages that were interrupted; one that was killed is reported as KILLED. A
    store that was moved with its folder is mended on the way. A journal that MLflow refuses keeps
    none of the others from being sent.

    Raises
    ------
    UserError
        MLflow cannot be reached, or has refused some; what was not sent is kept.
    """
    with suppress(sqlite3.Error):  # nothing may be kept for it
        relocate(artifacts)
    journals = events = 0
    refused = {}
    for lock, file in _kept(artifacts):
        try:
            with FileLock(lock, 0):
                sent = _send_kept(file, artifacts)
        except Timeout:
            continue  # a stage that runs sends its own
        except Exception as error:  # MLflow raises types of every library that it uses
            refused[file.relative_to(artifacts).as_posix()] = _reason(error)
            if not Sender(Journal(file), artifacts).answers():
                raise UserError(_unreachable(artifacts, _reason(error))) from error
            continue
        journals, events = journals + bool(sent), events + sent
    if refused:
        raise UserError(_refusal(artifacts, journals, events, refused))
    return journals, events


def _unreachable(artifacts: Path, reason: str) -> str:
    return (
        f"MLflow does not take what is kept in {artifacts} ({reason}); nothing is lost: try again "
        "when it does"
    )


def _refusal(artifacts: Path, journals: int, events: int, refused: dict[str, str]) -> str:
    which = "; ".join(f"{name} ({reason})" for name, reason in refused.items())
    return (
        f"sent {counted(events, 'event')} of {counted(journals, 'run')} that were kept, but MLflow "
        f"refuses {which}; what it refuses is kept in {artifacts}: try again "
        "when it takes it, or delete the file"
    )


def _reason(error: Exception) -> str:
    """Return why MLflow refuses: its own words where they can hold no address."""
    code = getattr(error, "error_code", None)
    if code is None or code in _OF_THE_WAY:
        return str(code or type(error).__name__)
    words = " ".join(str(error).split())
    return words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]}..."


def _kept(artifacts: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the journals of finished and of interrupted stages, each after its lock."""
    for file in sorted((artifacts / KEPT).glob("*.jsonl")):
        yield artifacts / KEPT / ".lock", file
    # One that was killed just after its publication has left its journal there.
    for file in sorted(artifacts.glob(f"*/*/*/{FILE}")):
        if not file.parent.is_symlink():
            yield writing_lock(file.parent), file


def _send_kept(file: Path, artifacts: Path) -> int:
    """Send a journal, which is deleted if its stage has ended; return the number of events."""
    finished = not file.parent.name.endswith(".partial")
    journal = Journal(file)
    if not finished and journal.events and journal.events[-1]["kind"] != "end":
        key = journal.events[0]["key"]
        journal.append({"kind": "end", "key": key, "time": now(), "status": "KILLED"})
    events = len(journal.events) - journal.sent
    Sender(journal, artifacts).send_all()
    if finished:
        journal.remove()
    return events
