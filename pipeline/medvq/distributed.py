"""Several processes that do a stage together: how they are started, how they meet, how they end.

``--processes N`` starts them through torchrun's own agent on this machine; under ``torchrun`` they
are there already, on one machine or many. The first of them runs the flow, with its locks, records
and figures; the others wait to be told which stage to do with it.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import importlib
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from medvq.errors import UserError
from medvq.storage.artifacts import StageContext

LOST = 75
"""Exit status of a process that another one left: the other says why."""
_TOGETHER = 60.0
# A stage before theirs may take long; who dies is noticed by torchrun's agent, not by a clock.
_PATIENCE = dt.timedelta(days=7)
# The numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def choose_device(wanted: str) -> str:
    """``cuda`` where asked for or, with ``auto``, where there is one; else ``cpu``.

    Raises
    ------
    UserError
        CUDA is asked for and there is none.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise UserError("DEVICE=cuda, but torch finds no CUDA device; use DEVICE=auto or cpu")
    return "cpu"


def keep_freed_memory(keep: bool = True) -> None:
    """Let the C library keep what tensors give back, where it is glibc.

    By itself it returns large pieces to the kernel, which clears them for the next step: up to a
    fifth of a training step (docs/results/speed.md). ``keep=False`` sets the most that it keeps by itself.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    set_option(_MMAP_THRESHOLD, (1 << 30) if keep else (32 << 20))
    set_option(_TRIM_THRESHOLD, (1 << 31) - 1 if keep else (64 << 20))


@contextmanager
def threads_of_one_core(number: int) -> Iterator[Executor]:
    """Threads in each of which torch computes on one core: of small tensors, many together are done
    sooner than each by many cores in turn.
    """
    import torch

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            number, "core", initializer=torch.set_num_threads, initargs=(1,)
        ) as threads:
            yield threads
    finally:
        # Torch gives later threads what any thread has set.
        torch.set_num_threads(before)


def rank() -> int:
    """Which process this is, from 0, as torchrun tells it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launch(number: int, arguments: Sequence[str], device: str) -> int:
    """Run the command line ``arguments`` in ``number`` processes; return the exit status.

    Raises
    ------
    UserError
        There are not as many processors or GPUs, the port is in use, or a process died.
    """
    _refuse_too_many(number, device)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It would tell every failure in forty lines.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{_port()}",
        monitor_interval=0.2,
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "medvq", *arguments)
    except ChildFailedError as error:
        return _tell(error.failures, number)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _refuse_too_many(number: int, device: str) -> None:
    if choose_device(device) == "cuda":
        import torch

        there, what = torch.cuda.device_count(), "GPUs"
    else:
        there, what = os.cpu_count() or 1, "processors"
    if number > there:
        raise UserError(f"NPROC={number}, but this machine has {there} {what}; use at most {there}")


def _port() -> int:
    port = int(os.environ.get("MASTER_PORT", "0"))
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("localhost", port))
        except OSError as error:
            raise UserError(
                f"MASTER_PORT={port} is in use; unset it to have a free one found"
            ) from error
    return port


def _tell(failures: dict[int, Any], number: int) -> int:
    """The exit status for the first failure; a line for one that has not told its own."""
    own = {r: f for r, f in failures.items() if f.exitcode not in (LOST, -signal.SIGTERM)}
    failed, failure = min((own or failures).items(), key=lambda item: item[1].timestamp)
    if failure.exitcode in (2, 130):
        return int(failure.exitcode)
    how = f"ended with status {failure.exitcode}"
    if failure.exitcode < 0:
        how = f"was ended by {signal.Signals(-failure.exitcode).name}"
    # A process that is ended leaves its progress bar without an end of line.
    print(file=sys.stderr)
    raise UserError(
        f"process {failed} of {number} {how}, and the others with it; "
        "the same command goes on from the last finished epoch"
    )


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Meet the other processes; alone, nothing.

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
    limit = dt.timedelta(seconds=_TOGETHER)
    try:
        store, number, world = next(rendezvous("env://", timeout=limit))
        store.set(f"here/{number}", "")
        store.wait([f"here/{other}" for other in range(world)], limit)
    except (dist.DistError, ValueError) as error:
        raise UserError(
            f"not all of WORLD_SIZE={world_size()} processes came within a minute; start them "
            "together, with NPROC or torchrun"
        ) from error
    dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def together(function: str, context: StageContext) -> Any:
    """Call ``module:function`` with ``work`` in every process; the first one's result."""
    if world_size() > 1:
        # What reports to the tracking stays with the first process.
        told = {f.name: getattr(context, f.name) for f in fields(context) if f.name != "report"}
        _broadcast((function, told))
    return load(function)(context)


def follow() -> None:
    """Do what the first process calls :func:`together`, until it is done."""
    while (call := _broadcast(None)) is not None:
        function, told = call
        load(function)(StageContext(**told))


def dismiss() -> None:
    """Tell the others that all is done."""
    if world_size() > 1:
        _broadcast(None)


def _broadcast(message: Any) -> Any:
    import torch.distributed as dist

    box = [message]
    dist.broadcast_object_list(box)
    return box[0]


def left_by_others(error: Exception) -> bool:
    """Whether ``error`` is that another process is gone."""
    if world_size() == 1:
        return False
    import torch.distributed as dist

    text = str(error)
    return isinstance(error, dist.DistError) or any(
        sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "gloo")
    )


def load(entry: str) -> Callable[..., Any]:
    """The ``function`` of ``module:function``, imported now."""
    module, _, function = entry.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return loaded
