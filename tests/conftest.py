"""What many tests share: where real data is, and what happens where it is not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Threads cost more than they give on tiny images. Read when torch and the BLAS are loaded, and by
# the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest

# No test depends on how fast a machine is.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# On Python 3.11 SlipCover rewrites functions that it has nothing more to learn from, and trips over
# imports in threads. Its command line has an option against that, which is not passed on to the
# processes of pytest-xdist.
if counting := getattr(sys.modules.get("slipcover.pytest_plugin"), "_slipcover_instance", None):
    counting.d_miss_threshold = 1_000_000_000

# Files that take longest, half a minute each: begun last, they would keep one process busy alone.
LONGEST = (
    "test_distributed.py",
    "test_faults.py",
    "test_flow.py",
    "test_end_to_end.py",
    "test_canaries.py",
    "test_notebooks.py",
    "test_tracking_pages.py",
    "test_multiplicity.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the order within each stays."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(LONGEST)))


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


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and artifacts of the smallest phantom set, up to the probe: a copy for each module."""
    from factories.flow import copied_flow

    copy = tmp_path_factory.mktemp("flow")
    copied_flow(tmp_path_factory.getbasetemp(), copy)
    return copy


@pytest.fixture(scope="module")
def kept_workers() -> Iterator[None]:
    """Let the processes that read files for one test read those of the next."""
    from medvq.images.workers import kept_processes

    with kept_processes():
        yield


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
