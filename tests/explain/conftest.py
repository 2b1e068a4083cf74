"""What the smallest phantom flow leaves, for all tests of explanations."""

from pathlib import Path

import pytest
from factories.flow import command
from medvq.cli import main


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and artifacts of the smallest phantom set, up to the probe."""
    path = tmp_path_factory.mktemp("flow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVQ_SUBJECT_KEY", "tests only")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(command(path)) == 0
    return path


@pytest.fixture(scope="session")
def probe(folder: Path) -> Path:
    return folder / "artifacts/tiny/probe/latest"


@pytest.fixture(scope="session")
def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("data/phantom-*/images/*.dcm"))
