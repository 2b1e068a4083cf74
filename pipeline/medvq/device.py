"""The device that is computed on, and how its memory and cores are used."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from medvq.errors import UserError

if TYPE_CHECKING:
    import torch

# The numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
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
