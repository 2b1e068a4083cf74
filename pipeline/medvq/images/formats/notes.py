"""What was done to show a file, and what its user should be told of it.

Readers call :func:`applied` and :func:`notice` wherever they decide something; the two do nothing
outside of ``with recorded() as notes``. No text names a person: a text holds names of attributes
and numbers of the picture, never another value of a header.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Notes:
    """The notes on one file, each text once and in the order in which it was first written."""

    def __init__(self) -> None:
        self._applied: dict[str, None] = {}
        self._notices: dict[str, None] = {}

    @property
    def applied(self) -> tuple[str, ...]:
        """What was done to show the file: "rescale 1, -1024", "window -600/1500 (stated)"."""
        return tuple(self._applied)

    @property
    def notices(self) -> tuple[str, ...]:
        """Deviations that the user should know: "RescaleSlope is 0: ignored"."""
        return tuple(self._notices)

    def add_applied(self, text: str) -> None:
        self._applied[text] = None

    def add_notice(self, text: str) -> None:
        self._notices[text] = None


_notes: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextmanager
def recorded() -> Iterator[Notes]:
    """Collect the notes on what is read inside the block."""
    notes = Notes()
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def applied(text: str) -> None:
    """Note what was done to show the file."""
    if notes := _notes.get():
        notes.add_applied(text)


def notice(text: str) -> None:
    """Note a deviation of the file that its user should be told of.

    The text is the same for all files with that deviation, because ingest says each once: it holds
    no number that differs from file to file.
    """
    if notes := _notes.get():
        notes.add_notice(text)
