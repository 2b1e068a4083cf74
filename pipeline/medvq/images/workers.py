"""A function over many items in worker processes, of which any may crash or hang.

A decoder can crash, be killed for its memory, or never return. Executors of the standard library
break as a whole when one of their processes dies, and cannot end one that hangs; here only the item
that caused it is lost. The processes are fresh interpreters (not forked from one that holds
threads, and not importing the caller's main module), so they start in a few tenths of a second as
long as the function's module imports little.

The memory that a process may allocate is a share of the machine's (:func:`memory_limit`): a small
file can ask for far more than there is, and the kernel would then end a process of its choice. It
is told to choose one of these.

Keys and signals of the terminal do not reach the processes. They end with their caller, however it
ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from medvq.distributed import local_world_size

T = TypeVar("T")
R = TypeVar("R")

# Items that a process has at hand: it never waits for the next, and a pipe never fills.
_AHEAD = 2
# Results kept for each process while an earlier item is still being worked on.
_WINDOW = 32
# Share of the machine's memory that all processes together may allocate, and the least that each
# may: what the largest picture that is read takes, with the libraries.
_MEMORY_SHARE = 0.8
_LEAST_MEMORY = 3 * 2**29
# File descriptors for each process, while it starts.
_DESCRIPTORS = 6
# Headers that are read while a process starts, and seconds after which reading one counts as hung.
_HEADERS, _HEADER_TIMEOUT = 1024, 60.0
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# Processes that wait for the next call; None outside of kept_processes().
_idle: ContextVar[list[_Worker[Any, Any]] | None] = ContextVar("idle", default=None)


@dataclass(frozen=True)
class WorkerFailure:
    """The result of an item whose process crashed, hung or ran out of memory."""

    reason: str
    out_of_memory: bool = False


_OUT_OF_MEMORY = WorkerFailure("it needs more memory than there is", out_of_memory=True)


class _Raised(NamedTuple):
    error: Exception


class _Assignment(NamedTuple):
    """What a process is to do with the items that follow, and the bytes that it may allocate."""

    function: Callable[[Any], object]
    memory: int


class _Died(Exception):
    def __init__(self, reason: str, *, hung: bool = False) -> None:
        super().__init__(reason)
        self.hung = hung


def processors() -> int:
    """Count the processors that this process may use: of several processes each has a share."""
    return max(1, len(os.sched_getaffinity(0)) // local_world_size())


def memory_limit(processes: int) -> int:
    """Return the bytes that each of some processes may allocate.

    Four fifths of the memory of the machine, or of the control group (container, job of a cluster)
    where that has less, divided by the number of processes, those of other ranks among them; at
    least 1.5 GiB.
    """
    processes *= local_world_size()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(_LEAST_MEMORY, int(_MEMORY_SHARE * min([total, *_group_limits()])) // processes)


def _startable() -> int:
    """Count the processes that half of the free file descriptors are enough for; at least 1."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    free = limit - len(list(Path("/proc/self/fd").iterdir()))
    return max(1, free // 2 // _DESCRIPTORS)


def _group_limits() -> Iterator[int]:
    """Yield the memory limits of the control groups (version 2, and 1) that this process is in."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if controllers not in {"", "memory"}:
            continue
        base, name = (
            (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        )
        inner = base / group.lstrip("/")
        for folder in (inner, *inner.parents):
            # A container sees its own group at the root, under whatever name the host knows it.
            with contextlib.suppress(OSError, ValueError):
                yield int((folder / name).read_text())
            if folder == base:
                break


def map_in_processes(
    function: Callable[[T], R], items: Iterable[T], *, processes: int, timeout: float
) -> Generator[R | WorkerFailure]:
    """Yield results of ``function`` in the order of ``items``, which are taken as they are needed.

    Parameters
    ----------
    function, items : picklable; the function by the name of its module.
    processes : at most so many, at least 1; fewer where file descriptors are scarce.
    timeout : seconds after which an item's process is ended.

    Yields
    ------
    The result, or a :class:`WorkerFailure`: the process died twice over the item (once may be
    another's fault: memory), took longer than ``timeout``, or ran out of memory.

    Raises
    ------
    Exception
        Whatever the function raises.
    """
    pool = _Pool(function, items, processes, timeout)
    try:
        while pool.submit():
            pool.collect()
            yield from pool.ordered()
    finally:
        pool.end()


@contextlib.contextmanager
def kept_processes() -> Iterator[None]:
    """Let processes of one call serve the next inside the block, which spares their start.

    A block inside another one changes nothing.
    """
    if _idle.get() is not None:
        yield
        return
    idle: list[_Worker[Any, Any]] = []
    token = _idle.set(idle)
    try:
        yield
    finally:
        _idle.reset(token)
        for worker in idle:
            worker.end()


def read_headers(
    function: Callable[[Path], R], paths: Sequence[Path]
) -> Generator[R | WorkerFailure]:
    """Yield what ``function`` reads of the header of each file; see :func:`map_in_processes`."""
    count = min(processors(), 1 + len(paths) // _HEADERS)
    return map_in_processes(function, paths, processes=count, timeout=_HEADER_TIMEOUT)


class _Pool(Generic[T, R]):
    """Workers, the items that they work on, and results that wait for their turn."""

    def __init__(
        self, function: Callable[[T], R], items: Iterable[T], processes: int, timeout: float
    ) -> None:
        self.function, self.timeout = function, timeout
        self.processes = min(processes, _startable())
        self.memory = memory_limit(processes)
        self.queue = enumerate(items)
        self.retries: deque[tuple[int, T]] = deque()
        self.suspects: set[int] = set()
        self.results: dict[int, R | WorkerFailure] = {}
        self.started = self.yielded = 0
        self.workers: list[_Worker[T, R]] = []

    def submit(self) -> bool:
        """Submit items while a worker has room; say whether any is being worked on."""
        while self._has_room() and (task := self._next_task()):
            if len(self.workers) < self.processes and all(w.tasks for w in self.workers):
                self.workers.append(_start(_Assignment(self.function, self.memory)))
            min(self.workers, key=lambda worker: len(worker.tasks)).submit(task)
        return any(worker.tasks for worker in self.workers)

    def collect(self) -> None:
        """Wait for at least one answer; raise what the function raised."""
        for worker in self._wait():
            number, item = worker.tasks[0]
            try:
                answer = worker.receive(self.timeout)
            except _Died as died:
                self.retries.extendleft(list(worker.tasks)[:0:-1])
                self.workers.remove(worker)
                if died.hung or number in self.suspects:
                    self.results[number] = WorkerFailure(str(died))
                else:
                    self.suspects.add(number)
                    self.retries.appendleft((number, item))
                continue
            if isinstance(answer, _Raised):
                raise answer.error
            self.results[number] = answer

    def ordered(self) -> Iterator[R | WorkerFailure]:
        """Yield the results that are next in the order of the items."""
        while self.yielded in self.results:
            self.yielded += 1
            yield self.results.pop(self.yielded - 1)

    def end(self) -> None:
        idle = _idle.get()
        for worker in self.workers:
            if idle is None or worker.tasks:
                worker.end()
            else:
                idle.append(worker)

    def _has_room(self) -> bool:
        return len(self.workers) < self.processes or any(
            len(worker.tasks) < _AHEAD for worker in self.workers
        )

    def _next_task(self) -> tuple[int, T] | None:
        if self.retries:
            return self.retries.popleft()
        full = self.started - self.yielded >= _WINDOW * self.processes
        if full or (task := next(self.queue, None)) is None:
            return None
        self.started += 1
        return task

    def _wait(self) -> list[_Worker[T, R]]:
        """Wait for workers that have answered, have died, or have taken too long: at least one."""
        busy = [worker for worker in self.workers if worker.tasks]
        while True:
            remaining = min(worker.since for worker in busy) + self.timeout - time.monotonic()
            ready = wait([worker.connection for worker in busy], max(remaining, 0.0))
            late = time.monotonic() - self.timeout
            if answering := [w for w in busy if w.connection in ready or w.since <= late]:
                return answering


def _start(assignment: _Assignment) -> _Worker[Any, Any]:
    idle = _idle.get()
    worker: _Worker[Any, Any] = idle.pop() if idle else _Worker()
    worker.send(assignment)
    return worker


class _Worker(Generic[T, R]):
    """One process and the items submitted to it, of which it works on the first."""

    def __init__(self) -> None:
        self.tasks: deque[tuple[int, T]] = deque()
        self.since = 0.0
        ours, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        # The processes share the processors; threads inside them would only compete.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                process_group=0,
            )
        self.connection = Connection(ours.detach())

    def submit(self, task: tuple[int, T]) -> None:
        if not self.tasks:
            self.since = time.monotonic()
        self.tasks.append(task)
        self.send(task[1])

    def receive(self, timeout: float) -> R | WorkerFailure | _Raised:
        """Return the result of the first item.

        Raises
        ------
        _Died
            There will be none; the process has ended.
        """
        if not self.connection.poll():
            self.end()
            raise _Died(f"reading it took longer than {timeout:g} seconds", hung=True)
        try:
            answer: R | WorkerFailure | _Raised = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            code = self.process.wait()
            self.end()
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            raise _Died(f"the decoder crashed ({how})") from error
        self.tasks.popleft()
        self.since = time.monotonic()
        return answer

    def send(self, what: object) -> None:
        with contextlib.suppress(OSError):  # it has died, which receive() finds out
            self.connection.send(what)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def _work(descriptor: int, caller: int) -> int:
    """Serve in a worker process: receive assignments and items until the other end is closed."""
    # A process that waits sees its caller end, and one that hangs in a decoder does not.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != caller:
        return 0
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Decoders print what they find in headers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    connection = Connection(descriptor)
    while True:
        answer: object
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return 0
        except Exception as error:  # whatever unpickling raises
            answer = _Raised(RuntimeError(f"a reading process could not start: {error!r}"))
        else:
            if isinstance(message, _Assignment):
                function = message.function
                _limit_memory(message.memory)
                continue
            answer = _answer(function, message)
        try:
            connection.send(answer)
        except OSError:
            return 0


def _limit_memory(memory: int) -> None:
    """Limit what this process allocates.

    And not its address space, of which libraries and files that are mapped take gigabytes that are
    no memory.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        memory = min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, hard))


def _answer(function: Callable[[Any], object], item: object) -> object:
    try:
        return function(item)
    except Exception as error:
        return _OUT_OF_MEMORY if _is_out_of_memory(error) else _Raised(error)


def _is_out_of_memory(error: Exception) -> bool:
    """Say whether an allocation has failed: torch and OpenCV raise errors of their own."""
    text = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in text or "OutOfMemory" in text


if __name__ == "__main__":
    # Under its own name, so that what is sent is of the caller's classes.
    from medvq.images import workers

    raise SystemExit(workers._work(int(sys.argv[1]), int(sys.argv[2])))
