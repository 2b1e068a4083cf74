"""What the smallest phantom flow leaves, for all tests of explanations."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(flow_folder: Path) -> Path:
    return flow_folder


@pytest.fixture(scope="module")
def probe(folder: Path) -> Path:
    return folder / "artifacts/tiny/probe/latest"


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("data/phantom-*/images/*.dcm"))
