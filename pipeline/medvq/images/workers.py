"""A function over many items, in processes of their own, whatever becomes of a process.

A decoder can crash, be killed for its memory, or never come back. Executors of the standard library
break as a whole when one of their processes dies, and cannot end one that hangs; here only the item
that did it is lost. The processes are fresh interpreters (not forked from one that holds threads,
and not importing the caller's main module), so they start in a few tenths of a second as long as
the function's module imports little.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2
"""Items that a process has at hand: it never waits for the next, and a pipe never fills."""
_WINDOW = 32
"""Results kept for each process while an earlier item is still being worked on."""


@dataclass(frozen=True)
class WorkerFailure:
    """Stands for the result of an item that took its process with it."""

    reason: str


class _Raised(NamedTuple):
    error: Exception


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def map_in_processes(
    function: Callable[[T], R], items: Iterable[T], *, processes: int, timeout: float
) -> Iterator[R | WorkerFailure]:
    """Results of ``function`` in the order of ``items``, which are taken as they are needed.

    Parameters
    ----------
    function, items : picklable; the function by the name of its module.
    processes : at least 1.
    timeout : seconds after which an item's process is ended.

    Yields
    ------
    The result, or :class:`Lost` with a reason: the process died twice over the item (once may be
    another's fault: memory), took longer than ``timeout``, or ran out of memory.

    Raises
    ------
    Exception
        Whatever the function raises.
    """
    queue = enumerate(items)
    again: deque[tuple[int, T]] = deque()
    suspects: set[int] = set()
    results: dict[int, R | WorkerFailure] = {}
    taken = given = 0
    workers: list[_Worker[T, R]] = []

    def next_task() -> tuple[int, T] | None:
        nonlocal taken
        if again:
            return again.popleft()
        if taken - given >= _WINDOW * processes or (task := next(queue, None)) is None:
            return None
        taken += 1
        return task

    try:
        while True:
            while _has_room(workers, processes) and (task := next_task()):
                if len(workers) < processes and all(worker.tasks for worker in workers):
                    workers.append(_Worker(function))
                min(workers, key=lambda worker: len(worker.tasks)).give(task)
            busy = [worker for worker in workers if worker.tasks]
            if not busy:
                return
            for worker in _answering(busy, timeout):
                number, item = worker.tasks[0]
                try:
                    answer = worker.answer(timeout)
                except _Died as died:
                    again.extendleft(list(worker.tasks)[:0:-1])
                    workers.remove(worker)
                    if died.hung or number in suspects:
                        results[number] = WorkerFailure(str(died))
                    else:
                        suspects.add(number)
                        again.appendleft((number, item))
                    continue
                if isinstance(answer, _Raised):
                    raise answer.error
                results[number] = answer
            while given in results:
                yield results.pop(given)
                given += 1
    finally:
        for worker in workers:
            worker.end()


def _has_room(workers: list[_Worker[T, R]], processes: int) -> bool:
    return len(workers) < processes or any(len(worker.tasks) < _AHEAD for worker in workers)


def _answering(busy: list[_Worker[T, R]], timeout: float) -> list[_Worker[T, R]]:
    """Those that have answered, have died, or have taken too long: at least one."""
    while True:
        now = time.monotonic()
        patience = min(worker.since for worker in busy) + timeout - now
        ready = wait([worker.connection for worker in busy], max(patience, 0.0))
        late = time.monotonic() - timeout
        if found := [w for w in busy if w.connection in ready or w.since <= late]:
            return found


class _Died(Exception):
    def __init__(self, reason: str, *, hung: bool = False) -> None:
        super().__init__(reason)
        self.hung = hung


class _Worker(Generic[T, R]):
    """One process and the items it has been given, the one it works on first."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self.tasks: deque[tuple[int, T]] = deque()
        self.since = 0.0
        ours, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        # The processes share the processors; threads inside them would only compete.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        self.connection = Connection(ours.detach())
        self.send(function)

    def give(self, task: tuple[int, T]) -> None:
        if not self.tasks:
            self.since = time.monotonic()
        self.tasks.append(task)
        self.send(task[1])

    def answer(self, timeout: float) -> R | WorkerFailure | _Raised:
        """The result of the first item.

        Raises
        ------
        _Died
            There is none and never will be; the process has ended.
        """
        if not self.connection.poll():
            self.end()
            raise _Died(f"reading it took longer than {timeout:g} seconds", hung=True)
        try:
            answer: R | WorkerFailure | _Raised = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            code = self.process.wait()
            self.end()
            if code == _NOT_STARTED:
                raise RuntimeError("a reading process could not start; see above") from error
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            raise _Died(f"the decoder crashed ({how})") from error
        self.tasks.popleft()
        self.since = time.monotonic()
        return answer

    def send(self, what: object) -> None:
        with contextlib.suppress(OSError):  # it has died, which answer() will find
            self.connection.send(what)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


_NOT_STARTED = 70


def _work(descriptor: int) -> int:
    """The life of one process: a function first, then items until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller ends us
    connection = Connection(descriptor)
    try:
        function = connection.recv()
    except EOFError:
        return 0
    except Exception:  # whatever unpickling raises, the parent is told
        sys.excepthook(*sys.exc_info())
        return _NOT_STARTED
    # Decoders print what they find in headers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):
            return 0
        answer: object
        try:
            answer = function(item)
        except MemoryError:
            answer = WorkerFailure("it needs more memory than there is")
        except Exception as error:
            answer = _Raised(error)
        try:
            connection.send(answer)
        except OSError:
            return 0


if __name__ == "__main__":
    # Under its own name, so that what is sent is of the caller's classes.
    from medvq.images import workers

    raise SystemExit(workers._work(int(sys.argv[1])))
