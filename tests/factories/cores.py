"""On how many cores linear algebra is computed."""

from __future__ import annotations

from pathlib import Path

from threadpoolctl import threadpool_info


def blas_threads() -> dict[str, int]:
    """Return the threads of NumPy's and of SciPy's library; others compute nothing here."""
    users = {"numpy.libs": "numpy", "scipy.libs": "scipy"}
    folders = [(Path(one["filepath"]).parent.name, one) for one in threadpool_info()]
    return {users[name]: one["num_threads"] for name, one in folders if name in users}
