"""Checkpoints that are whole or refused, and interruptions that leave one."""

from __future__ import annotations

import hashlib
import io
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from medvq.errors import UserError
from medvq.interruption import handle_signals

_HEADER = b"MedVQ checkpoint, SHA-256 "


def save_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write aside and rename, so that a killed run leaves a whole checkpoint.

    The file begins with a checksum of its content: torch's own format has one, which its reader
    does not look at, and a flipped bit would be trained on unseen.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    aside = file.with_name(f".{file.name}")
    with aside.open("wb") as stream:
        stream.write(_HEADER + hashlib.sha256(content).hexdigest().encode() + b"\n")
        stream.write(content)
    aside.replace(file)


def load_checkpoint(file: Path, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote.

    Raises
    ------
    UserError
        The file is damaged or no checkpoint.
    """
    header, _, content = file.read_bytes().partition(b"\n")
    if header != _HEADER + hashlib.sha256(content).hexdigest().encode():
        raise UserError(f"{file} is damaged or no checkpoint; delete its folder to start anew")
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return state


class DeferredInterruption:
    """Holds signals that end a command back until :meth:`pass_on`, between two training steps.

    A step that is broken off in the middle leaves weights and optimiser at odds. Signals reach the
    main thread of a process alone; in another thread nothing is held back.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = handle_signals(self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on(self) -> None:
        """Do what a signal that came meanwhile would have done."""
        if self.received is not None:
            handler = self._before[self.received]
            if callable(handler):
                handler(self.received, None)
            raise KeyboardInterrupt

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
