"""Memory of the libraries that compute."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
