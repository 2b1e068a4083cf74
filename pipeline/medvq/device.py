"""The device that is computed on, and how its memory and threads are used."""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from collections.abc import Collection, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medvq.errors import Notice, UserError

if TYPE_CHECKING:
    import torch

# The numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# What the kernel counts of its processors, and for how many seconds that is looked at: its averages
# are of minutes, in which this program may have been the one that computed.
_STATE, _LOOK_SECONDS = Path("/proc/stat"), 0.5
_BLAS_BUFFER = 128 << 20  # bytes, the largest of OpenBLAS's builds; most take 32 MiB


def choose_device(wanted: str) -> str:
    """Return ``cuda`` where asked for or, with ``auto``, where there is one; else ``cpu``.

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


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether ``device`` has instructions for bfloat16; else it is slower than float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Torch before 2.11 does not say what a processor can.
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def keep_freed_memory(keep: bool = True) -> None:
    """Let the C library keep the memory that tensors free, where it is glibc.

    By default glibc returns large pieces to the kernel, which clears them for the next step: up to
    a fifth of a training step (docs/results/speed.md). ``keep=False`` sets the most that glibc
    keeps by default.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    set_option(_MMAP_THRESHOLD, (1 << 30) if keep else (32 << 20))
    set_option(_TRIM_THRESHOLD, (1 << 31) - 1 if keep else (64 << 20))


def reserve_blas_memory() -> None:
    """Let the OpenBLAS of NumPy and that of SciPy each take its buffer, which it then keeps.

    Each takes it in the first call that needs one; without the memory it would try again for ever
    or end the process.

    Raises
    ------
    MemoryError
        There is too little memory for it.
    """
    import numpy as np
    import scipy.linalg

    for cholesky in (np.linalg.cholesky, scipy.linalg.cholesky):
        np.empty(_BLAS_BUFFER, np.uint8)
        cholesky(np.eye(2))


@contextmanager
def threads_of_one_core(number: int) -> Iterator[Executor]:
    """Provide threads in each of which torch computes on one core.

    Many small tensors, each on one core, are done sooner than each on many cores in turn.
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


def busy_processors(before: str, after: str, processors: Collection[int]) -> float:
    """Return how many processors were busy between two states of ``/proc/stat``.

    Time in which one waits for a disk, or computes for programs that give way to others (``nice``),
    is free.
    """
    first, second = (_times(state) for state in (before, after))
    busy = 0.0
    for processor in first.keys() & second.keys() & set(processors):
        passed = [b - a for a, b in zip(first[processor], second[processor], strict=True)]
        _, nice, _, idle, waits = passed[:5]
        busy += 1 - (nice + idle + waits) / sum(passed) if sum(passed) else 0.0
    return busy


def _times(state: str) -> dict[int, list[int]]:
    """Return the times of each processor, but for those of guests, which others contain."""
    lines = [line.split() for line in state.splitlines() if line.startswith("cpu")]
    return {int(name[3:]): list(map(int, times[:8])) for name, *times in lines if name != "cpu"}


def _busy_now(processors: Collection[int]) -> float:
    """Return how many processors other programs keep busy while this one waits; 0 if unknown."""
    try:
        before = _STATE.read_text()
        time.sleep(_LOOK_SECONDS)
        return busy_processors(before, _STATE.read_text(), processors)
    except (OSError, ValueError):
        return 0.0


def _says_threads() -> bool:
    return "OMP_NUM_THREADS" in os.environ


@contextmanager
def threads_for_training(device: str) -> Iterator[None]:
    """Compute in :func:`free_threads` threads inside the block, unless OMP_NUM_THREADS is set."""
    import torch

    before = torch.get_num_threads()
    if not _says_threads() and device == "cpu" and _STATE.exists():
        available = os.sched_getaffinity(0)
        number = min(before, free_threads(len(available), _busy_now(available)))
        torch.set_num_threads(number)
        if number < before:
            threads = "1 thread" if number == 1 else f"{number} threads"
            text = (
                f"training in {threads}, since other programs use the {before} processors; "
                f"OMP_NUM_THREADS={before} takes all"
            )
            warnings.warn(Notice(text), stacklevel=2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resume_threads(number: int | None) -> None:
    """Compute in the threads of the run that is resumed: other sums would give other bits."""
    import torch

    if number is not None and not _says_threads():
        torch.set_num_threads(number)
