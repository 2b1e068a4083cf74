"""Several processes started by torchrun: every one runs the same program.

The first process (rank 0) decides what is up to date, writes records and figures, and reports;
stages that are distributed share their work. Alone, everything here does nothing.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from medvq.device import choose_device
from medvq.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
PEER_LOST = 75
"""Exit status of a process whose peer is gone: the peer says why."""
TOLD = "MEDVQ_TOLD"
"""Environment variable: a file in which the processes of a launch note that one has said why."""
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_TORCHRUN = "unset it, or start several processes with NPROC or torchrun, which set it"
_RENDEZVOUS = dt.timedelta(seconds=60)
# A stage that one process runs alone may take long; torchrun's agent, not a clock, notices that a
# process has died.
_COLLECTIVE = dt.timedelta(days=7)
# Between looks at whether torchrun is still there, and from SIGTERM to the end by force.
_WATCH_SECONDS, _END_SECONDS = 1.0, 10.0


def rank() -> int:
    """Return the number of this process, from 0, as torchrun sets it."""
    number = _environment_number("RANK", 0)
    return number if number < world_size() else 0  # check_environment() refuses it


def world_size() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return _environment_number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """Return how many of the processes run on this machine."""
    return _environment_number("LOCAL_WORLD_SIZE", 1)


def _environment_number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def check_environment() -> None:
    """Refuse variables of torchrun that it cannot have set.

    A process that took itself for the second of one would wait for what nobody makes.

    Raises
    ------
    UserError
        One is no number, or a process has a number beyond that of all.
    """
    for name in _VARIABLES:
        if not os.environ.get(name, "0").isdecimal():
            raise UserError(f"{name}={os.environ[name]!r} is no number; {_TORCHRUN}")
    if (number := _environment_number("RANK", 0)) >= world_size():
        raise UserError(f"RANK={number} is not below WORLD_SIZE={world_size()}; {_TORCHRUN}")


@contextmanager
def turn_to_tell() -> Iterator[bool]:
    """Yield whether this process is to say why all end: of those that meet an error, the first.

    The others wait until it has: the launch ends all processes once one has ended.
    """
    file = Path(os.environ.get(TOLD, ""))
    if not file.is_file():  # torchrun of the user's own, or a launch that is gone
        yield rank() == 0
        return
    with file.open("ab") as told:
        fcntl.flock(told, fcntl.LOCK_EX)
        first = os.fstat(told.fileno()).st_size == 0
        yield first
        if first:
            told.truncate(1)  # which needs no space on a full disk


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes.

    Raises
    ------
    UserError
        Not all of them came within a minute.
    """
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if choose_device(device) == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, number, size = next(rendezvous("env://", timeout=_RENDEZVOUS))
        store.set(f"present/{number}", "")
        store.wait([f"present/{other}" for other in range(size)], _RENDEZVOUS)
    except (dist.DistError, ValueError) as error:
        raise UserError(
            f"not all of WORLD_SIZE={world_size()} processes came within a minute; start them "
            "together, with NPROC or torchrun"
        ) from error
    _end_with_parent()
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_COLLECTIVE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _end_with_parent() -> None:
    """End this process once the one that started it is gone; by force if it takes long."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_END_SECONDS)
        os._exit(PEER_LOST)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def from_first(compute: Callable[[], T]) -> T:
    """Return what the first process computes, in every process."""
    if world_size() == 1:
        return compute()
    import torch.distributed as dist

    box: list[Any] = [compute() if rank() == 0 else None]
    dist.broadcast_object_list(box)
    value: T = box[0]
    return value


def map_shared(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield the results of ``function`` in the order of ``items``, each made by one process.

    Every process has to call it with the same items and to go through what it yields: that is
    everything in the first process, and nothing in the others.
    """
    size = world_size()
    if size == 1:
        yield from map(function, items)
        return
    import torch.distributed as dist

    for start in range(0, len(items), size):
        own = items[start + rank() : start + rank() + 1]
        results: list[Any] | None = [None] * size if rank() == 0 else None
        dist.gather_object([function(item) for item in own], results)
        for part in results or ():
            yield from part


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()


def await_peer_end() -> None:
    """Wait for the end of a peer that is lost, upon which the launch ends this process, too.

    Were this one first, the launch would end the peer before it has said why.
    """
    time.sleep(_END_SECONDS)


def is_lost_peer(error: Exception) -> bool:
    """Return whether ``error`` says that another process is gone."""
    if world_size() == 1:
        return False
    import torch.distributed as dist

    text = str(error)
    return isinstance(error, dist.DistError) or any(
        sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "gloo")
    )
