"""The device that is computed on, and how its memory and threads are used."""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medvq.errors import Notice, UserError

if TYPE_CHECKING:
    import torch

# The numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Looks at how many tasks other programs run, and seconds between them.
_LOOKS, _LOOK_SECONDS = 10, 0.05
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


def free_threads(processors: int, others: float) -> int:
    """Return how many threads to train in: one for each processor that nobody else uses.

    The threads of an operation wait for the last of them. On processors that other programs keep
    busy that is most of the time: two threads trained at a sixth of the speed of one.

    Parameters
    ----------
    processors : that there are.
    others : tasks of other programs that compute or wait for a processor, on average.

    >>> free_threads(2, 0.3), free_threads(2, 1.2), free_threads(2, 9.5), free_threads(16, 4.4)
    (2, 1, 1, 12)
    """
    return max(1, processors - round(others))


def _other_tasks() -> float:
    """Count the tasks beside this one that compute or wait for a processor, on average.

    Over half a second, since the averages of the kernel are of minutes, in which this program may
    have been the one that computed. Zero where the kernel does not say.
    """
    running = []
    for _ in range(_LOOKS):
        try:
            field = Path("/proc/loadavg").read_text().split()[3]
        except (OSError, IndexError):
            return 0.0
        running.append(int(field.partition("/")[0]))
        time.sleep(_LOOK_SECONDS)
    return max(0.0, sum(running) / len(running) - 1)


def _says_threads() -> bool:
    return "OMP_NUM_THREADS" in os.environ


@contextmanager
def threads_for_training(device: str) -> Iterator[None]:
    """Compute in :func:`free_threads` threads inside the block, unless OMP_NUM_THREADS is set."""
    import torch

    before = torch.get_num_threads()
    if not _says_threads() and device == "cpu":
        number = free_threads(before, _other_tasks())
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
