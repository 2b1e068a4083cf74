"""What MLflow is to be told, written down before it is sent.

A journal is a file with one JSON object a line, in the folder that a stage writes to. Beside it
stands how much of it was sent, so that a run that is killed, or a server that is away, loses and
repeats nothing: what is sent twice all the same (killed between sending and noting it) is the same
to the millisecond, which MLflow stores once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]
"""A JSON object with a ``kind`` that :mod:`medvq.storage.mlflow_sender` knows."""
FILE = ".tracking.jsonl"
FILES = (FILE, ".tracking.sent")


class Journal:
    """Events in order, and how many of them were sent.

    Attributes
    ----------
    runs : MLflow's run ids, by the key of the event that started each.
    closed : whether nothing more is to be sent from here.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._sent_file = file.with_suffix(".sent")
        self._changed = threading.Condition()
        self.closed = False
        self.events = list(self._read())
        self.sent, self.runs = self._read_sent()

    def append(self, event: Event) -> None:
        """Write an event down; it survives the process from then on."""
        with self._changed:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(event) + "\n")
            self.events.append(event)
            self._changed.notify_all()

    def next(self, timeout: float | None) -> Event | None:
        """Return the first event that was not sent, waiting for one; None after ``timeout``."""
        with self._changed:
            self._changed.wait_for(lambda: self.sent < len(self.events), timeout)
            return self.events[self.sent] if self.sent < len(self.events) else None

    def mark_sent(self) -> None:
        """Note that the event of :meth:`next` was sent; nothing once the journal is closed."""
        with self._changed:
            if self.closed:
                return
            self.sent += 1
            aside = self._sent_file.with_suffix(".aside")
            aside.write_text(json.dumps({"sent": self.sent, "runs": self.runs}), encoding="utf-8")
            aside.replace(self._sent_file)

    def rewind(self) -> None:
        """Send everything again, to new runs: the store has lost those that it had."""
        with self._changed:
            self.sent, self.runs = 0, {}

    def close(self) -> None:
        """Write nothing more: the files may be another's from here on."""
        with self._changed:
            self.closed = True

    @property
    def is_sent(self) -> bool:
        """Whether nothing is left to send."""
        return self.sent == len(self.events)

    def follow(self, folder: Path) -> None:
        """Go on in ``folder``, to which the folder of the journal was renamed; and close it."""
        self.close()
        self.file, self._sent_file = folder / self.file.name, folder / self._sent_file.name

    def remove(self) -> None:
        """Delete the files of the journal, and close it."""
        self.close()
        self.file.unlink(missing_ok=True)
        self._sent_file.unlink(missing_ok=True)

    def move(self, file: Path) -> None:
        """Move the files of the journal to another place, and close it."""
        self.close()
        file.parent.mkdir(parents=True, exist_ok=True)
        if self._sent_file.exists():
            self._sent_file.replace(file.with_suffix(".sent"))
        self.file.replace(file)

    def _read(self) -> Iterator[Event]:
        """Yield the events of the file, which is cut where one was cut off by a kill."""
        if not self.file.exists():
            return
        whole = 0
        with self.file.open("rb+") as stream:
            for line in stream:
                try:
                    event = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                yield event
            stream.truncate(whole)

    def _read_sent(self) -> tuple[int, dict[str, str]]:
        try:
            state = json.loads(self._sent_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return 0, {}  # what is sent again changes nothing
        return min(state["sent"], len(self.events)), state["runs"]
