"""What many tests share: where real data is, and what happens where it is not."""

from __future__ import annotations

import os
from pathlib import Path

# Threads cost more than they give on tiny images. Read when torch and the BLAS are loaded, and by
# the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's own secret for naming subjects."""
    monkeypatch.setenv("MEDVQ_SUBJECT_KEY", "tests only")


@pytest.fixture(autouse=True)
def _no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test, or a process it starts, fetches from elsewhere than this machine fails."""
    for scheme in ("http", "https", "all"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; without it a test skips, or fails where CI demands it."""
    mirror = os.environ.get("DATA_MIRROR")
    if mirror and Path(mirror).is_dir():
        return Path(mirror)
    if os.environ.get("MEDVQ_REQUIRE_DATA"):
        pytest.fail("MEDVQ_REQUIRE_DATA is set, and DATA_MIRROR is not a folder")
    # Real patients' images may not be in the repository.
    pytest.skip("needs real data: set DATA_MIRROR to a folder that holds kermany/")  # not in CI
