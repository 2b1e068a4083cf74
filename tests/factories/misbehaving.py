"""Functions for processes of their own: some do not come back."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
from medvq.datasets import array_files
from medvq.datasets.array_files import LabelledFile
from medvq.errors import UserError
from medvq.images.formats import identity, is_dicom, is_nifti
from medvq.images.reading import ImageFiles, Reader
from medvq.storage.lineage import peak_memory


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def perilous(number: int) -> int:
    if number == 3:
        ctypes.string_at(0)
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 7:
        time.sleep(60)
    if number == 9:
        os._exit(3)
    if number == 11:
        raise MemoryError
    return number * number


def in_need_of_luck(path: str) -> str:
    """Dies the first time."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "read"
    os.kill(os.getpid(), signal.SIGKILL)
    return "dead"


def buggy(number: int) -> int:
    return 1 // number


def talkative(number: int) -> bytes:
    os.write(1, b"CANARY\n")
    os.write(2, b"CANARY\n")
    return b"x" * 3_000_000


def who(number: int) -> int:
    return os.getpid()


def hungry(mebibytes: int) -> int:
    """Allocate, by numpy, torch or OpenCV in turn."""
    size = mebibytes * 2**20
    if mebibytes % 3 == 0:
        np.ones(size, np.uint8)
    elif mebibytes % 3 == 1:
        import torch

        torch.ones(size, dtype=torch.uint8)
    else:
        cv2.resize(np.ones((64, 64), np.uint8), (1024, size // 1024))
    return mebibytes


def hang_in_c(path: str) -> None:
    """Write the number of this process, and wait in C."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def hang_with_the_lock(path: str) -> None:
    """Write the number of this process, and wait in C where no other Python code can run."""
    Path(path).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)


def oom_score(number: int) -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


def crash(item: object) -> None:
    os.abort()


def identify(path: Path) -> identity.Identity | None:
    """Read a header, or crash or run out of memory as the name of the file says."""
    if "crash" in path.name:
        os.abort()
    if "memory" in path.name:
        raise MemoryError
    return identity.identify(path)


def peak_of_labels(file: LabelledFile) -> int:
    """Read the labels of a damaged file; return the peak memory of this process in bytes."""
    with contextlib.suppress(UserError):
        array_files._read_labels(file)
    return peak_memory()


def peak_of_reading(path: Path) -> tuple[str, int]:
    """Read the header of a file and its image; return why it is refused, and the peak memory."""
    if is_dicom(path):
        identity.identify(path)
    result = Reader((8, 8, 8) if is_nifti(path) else (8, 8))(ImageFiles((path,)))
    return result.reason, peak_memory()
