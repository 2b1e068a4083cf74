"""Memory and threads of the libraries that compute."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from medvq import device
from medvq.device import (
    busy_processors,
    free_threads,
    resume_threads,
    threads_for_training,
)
from medvq.errors import Notice

LEAVE_16_MIB = """
import resource
from pathlib import Path

import numpy as np
import scipy.linalg
from medvq.device import reserve_blas_memory
from scipy.optimize import minimize


def leave_16_mib():
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in status if line.startswith("VmData"))
    limit = (used << 10) + (16 << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))

"""
REFUSED = """
leave_16_mib()
try:
    reserve_blas_memory()
except MemoryError:
    print("refused")
"""
RESERVED = """
reserve_blas_memory()
leave_16_mib()
np.linalg.solve(np.eye(100), np.ones(100))
scipy.linalg.cholesky(np.eye(100))
found = minimize(lambda x: ((x - 3) ** 2).sum(), np.zeros(2), method="L-BFGS-B")
print(np.round(found.x, 3))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory hold on Linux")
@pytest.mark.parametrize(
    ("program", "printed"),
    [(REFUSED, "refused"), (RESERVED, "[3. 3.]")],
    ids=["refused", "reserved"],
)
def test_openblas_has_its_memory_or_is_refused_and_never_waits_for_it(
    program: str, printed: str
) -> None:
    command = [sys.executable, "-c", LEAVE_16_MIB + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == printed


@given(st.integers(1, 256), st.floats(0, 256), st.floats(0, 256))
def test_there_is_a_thread_for_each_processor_that_is_free(
    processors: int, busy: float, more: float
) -> None:
    assert free_threads(processors, 0.0) == processors
    assert 1 <= free_threads(processors, busy + more) <= free_threads(processors, busy)
    if free_threads(processors, busy) > 1:
        # Together with what others run there is no thread too many, and no processor idle.
        assert abs(free_threads(processors, busy) + busy - processors) <= 0.5


def state(*times: tuple[int, ...]) -> str:
    """The kernel's text: user, nice, system, idle, waits for disks, ..., ten numbers each."""
    filled = [(*values, *[0] * (10 - len(values))) for values in times]
    lines = [f"cpu{n} {' '.join(map(str, values))}" for n, values in enumerate(filled)]
    return "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 7 0 0", ""])


def test_busy_is_what_is_neither_idle_nor_waits_nor_gives_way() -> None:
    before = state((5, 5, 5, 5), (0, 0, 0, 0), (0, 0, 0, 0), (9, 9, 9, 9, 9))
    after = state((25, 5, 10, 30), (0, 50, 0, 0), (0, 0, 0, 40, 10), (59, 9, 9, 9, 9))
    assert busy_processors(before, after, [0]) == pytest.approx(0.5)
    assert busy_processors(before, after, [1]) == 0  # others that give way
    assert busy_processors(before, after, [2]) == 0  # idle, and waiting for a disk
    assert busy_processors(before, after, range(4)) == pytest.approx(1.5)
    assert busy_processors(before, before, range(8)) == 0  # no time has passed


@pytest.fixture
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
def test_training_leaves_the_processors_that_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_busy_now", lambda _: 9.5)
    with ExitStack() as stack:
        with pytest.warns(Notice, match="in 1 thread, .* OMP_NUM_THREADS=2"):
            stack.enter_context(threads_for_training("cpu"))
        assert torch.get_num_threads() == 1
        resume_threads(2)  # of a run that began on an idle machine
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(device, "_busy_now", lambda _: 0.2)
    with threads_for_training("cpu"):
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_two_threads")
def test_what_the_user_says_of_threads_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(device, "_busy_now", lambda _: 9.5)
    with threads_for_training("cpu"):
        resume_threads(1)
        assert torch.get_num_threads() == 2
