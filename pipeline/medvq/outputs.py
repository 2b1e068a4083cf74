"""Standard output and error that are closed, full, or lead to a terminal that is gone."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterable

_INPUT, _OUTPUT, _ERROR = range(3)
_NAMES = {_OUTPUT: "standard output", _ERROR: "standard error"}


def open_closed() -> None:
    """Let standard descriptors that are closed lead nowhere.

    A file that is opened would get the number of one, and what is printed would be written to it.
    """
    for descriptor in (_INPUT, _OUTPUT, _ERROR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def discard_unread() -> bool:
    """Let outputs that nobody reads any more lead nowhere, and return whether there are any.

    They are pipes as after ``| head``, and terminals that were closed.
    """
    poll = select.poll()
    for descriptor in _NAMES:
        poll.register(descriptor, 0)
    unread = [at for at, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    _discard(unread)
    return bool(unread)


def discard_refused() -> str | None:
    """Let an output that takes no more lead nowhere; return its name and the system's reason.

    Python keeps what could not be written and would end in an error of its own; where it keeps
    nothing (PYTHONUNBUFFERED), an empty write asks.
    """
    for descriptor, stream in ((_OUTPUT, sys.stdout), (_ERROR, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
                os.write(stream.fileno(), b"")
        except io.UnsupportedOperation:  # a stream of a notebook
            continue
        except OSError as error:
            _discard([descriptor])
            return f"{_NAMES[descriptor]} ({str(error.strerror).lower()})"
    return None


def _discard(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
