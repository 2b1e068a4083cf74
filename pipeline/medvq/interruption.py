"""Signals that end a command: an exception the first time, the end of the process the second."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from medvq.outputs import discard_unread

INTERRUPTED = "interrupted; run the same command again: what was finished is kept"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A terminal and torchrun both signal the processes that torchrun started: once is meant.
_ONCE_SECONDS = 2.0
_AGAIN_SECONDS = 0.05


def handle_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Have ``handler`` called with the signals that end a command; return the handlers before.

    A closed terminal sends SIGHUP, and to write to it would be an error from then on. Where nohup
    has the command ignore it, it stays ignored.
    """

    def received(number: int, frame: FrameType | None) -> None:
        discard_unread()
        handler(number, frame)

    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    return {number: signal.signal(number, received) for number in SIGNALS if number not in ignored}


class Interruption:
    """Handles the signals that end a command, within a context.

    SIGTERM, by which clusters and containers end a job, and SIGHUP, which a closed terminal sends,
    act as SIGINT does. Whatever is written is written aside and renamed, so that nothing is lost
    where a second signal ends the process.

    Attributes
    ----------
    received : the number of the first signal that came; None where none did.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._unraisable_before = sys.unraisablehook

    @property
    def status(self) -> int:
        """The exit status of a command that was interrupted."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> Self:
        self._before = handle_signals(self._interrupt)
        sys.unraisablehook = self._unraisable
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._unraisable_before

    def _unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Interrupt again: an exception that comes while an object is deleted is lost."""
        if self.received is None or not isinstance(lost.exc_value, KeyboardInterrupt):
            self._unraisable_before(lost)
            return
        number, self.received = self.received, None
        timer = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._since > _ONCE_SECONDS:
            # Not by print, which may be what is interrupted.
            os.write(2, f"medvq: {INTERRUPTED}\n".encode())
            os._exit(self.status)
