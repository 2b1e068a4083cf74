"""How many threads a training computes in, beside whatever else the machine does."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

import torch

from medvq.errors import Notice

# What the kernel counts of its processors: its averages are of minutes, in which this program may
# have been the one that computed.
_STATE = Path("/proc/stat")
_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 0.5, 10.0
_LOOKS_AT_FREE = 3  # in a row, before more threads are taken: others come and go


def free_threads(processors: int, busy: float) -> int:
    """Return how many threads to train in: one for each processor that nobody else uses.

    The threads of an operation wait for the last of them. On processors that other programs keep
    busy that is most of the time: two threads trained at a sixth of the speed of one.

    Parameters
    ----------
    processors : that this process may use.
    busy : how many of them other programs keep busy, on average.

    >>> free_threads(2, 0.3), free_threads(2, 1.2), free_threads(2, 2.0), free_threads(16, 4.4)
    (2, 1, 1, 12)
    """
    return max(1, processors - round(busy))


def busy_processors(before: str, after: str, processors: Collection[int]) -> tuple[float, float]:
    """Return how many processors were busy between two states of ``/proc/stat``.

    Time in which one waits for a disk is free. The first number leaves out programs that give way
    to others (``nice``); the second counts them.
    """
    first, second = (_times(state) for state in (before, after))
    busy = nice = 0.0
    for processor in first.keys() & second.keys() & set(processors):
        passed = [b - a for a, b in zip(first[processor], second[processor], strict=True)]
        whole = max(sum(passed), 1)
        nice += passed[1] / whole
        busy += (sum(passed) - sum(passed[3:5])) / whole
    return busy - nice, busy


def _times(state: str) -> dict[int, list[int]]:
    """Return the times of each processor, but for those of guests, which others contain."""
    lines = [line.split() for line in state.splitlines() if line.startswith("cpu")]
    return {int(name[3:]): list(map(int, times[:8])) for name, *times in lines if name != "cpu"}


def _says_threads() -> bool:
    return "OMP_NUM_THREADS" in os.environ


class TrainingThreads:
    """Computes in :func:`free_threads` threads while it is entered, unless OMP_NUM_THREADS is set.

    Others begin and end while a training goes on, so that :meth:`adapt` looks again: fewer threads
    are taken at once, more when they have been free for a while. Programs that give way to others
    slow one down all the same, some little and some much: processors that they use are left to them
    and then tried, and threads in which steps take longer are given up. It does nothing on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._adapts = device.type == "cpu" and not _says_threads() and _STATE.exists()
        self._processors = os.sched_getaffinity(0) if self._adapts else set()
        self._most = torch.get_num_threads()
        self._recent: list[int] = []  # threads that could be tried at each look
        self._looks = _LOOKS_AT_FREE
        # Threads, and the duration of a step in them, before more were taken.
        self._fewer: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        if self._adapts:
            self._begin()
            time.sleep(_FIRST_LOOK_SECONDS)
            self._take(self._free()[0], "since other programs use the processors")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        torch.set_num_threads(self._most)

    def resume(self, number: int | None) -> None:
        """Compute in the threads of the run that is resumed: other sums would give other bits."""
        if number is not None and not _says_threads():
            torch.set_num_threads(number)

    def adapt(self) -> None:
        """Look whether others use the processors, where a look is due; call it between steps."""
        if not self._adapts:
            return
        self._steps.append(time.monotonic())
        if self._steps[-1] - self._began < _LOOK_SECONDS:
            return
        # Of all steps the one in the middle: between two of them may lie the end of an epoch.
        step = median(after - before for before, after in pairwise(self._steps))
        (free, to_try), now = self._free(), torch.get_num_threads()
        self._recent = [*self._recent, to_try][-self._looks :]
        if self._fewer is not None and step > self._fewer[1] and to_try >= now:
            # Whatever slowed them may come again: wait longer before the next try.
            self._looks, self._recent = 2 * self._looks, []
            self._take(self._fewer[0], "since steps took longer in more")
            self._fewer = None
        elif (to_try if self._fewer else free) < now:
            self._fewer = None
            self._take(free, "since other programs use the processors now")
        elif len(self._recent) == self._looks and min(self._recent) > now:
            self._fewer = now, step
            self._take(min(self._recent), "since processors are free again")

    def _begin(self) -> None:
        self._began, self._own, self._state = time.monotonic(), time.process_time(), _read_state()
        self._steps = [self._began]

    def _free(self) -> tuple[int, int]:
        """Return how many threads others have left free since :meth:`_begin`, and begin anew.

        The second number counts as free what programs use that give way to others.
        """
        began, own, state = self._began, self._own, self._state
        self._begin()
        by_own = (self._own - own) / max(self._began - began, 1e-3)
        try:
            busy, with_nice = busy_processors(state, self._state, self._processors)
        except ValueError:  # a kernel that counts otherwise
            return self._most, self._most
        others = with_nice - by_own, busy - by_own * (os.nice(0) <= 0)
        free, to_try = (free_threads(len(self._processors), max(one, 0.0)) for one in others)
        return min(self._most, free), min(self._most, max(free, to_try))

    def _take(self, number: int, why: str) -> None:
        if number == torch.get_num_threads():
            return
        torch.set_num_threads(number)
        threads = "1 thread" if number == 1 else f"{number} threads"
        text = f"training in {threads}, {why}; OMP_NUM_THREADS={self._most} takes all"
        warnings.warn(Notice(text), stacklevel=2)


def _read_state() -> str:
    """Return what the kernel counts; nothing where it cannot be read: then all is free."""
    try:
        return _STATE.read_text()
    except OSError:
        return ""
