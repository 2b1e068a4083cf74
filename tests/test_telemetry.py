"""Libraries tell their makers nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "ORT_DISABLE_TELEMETRY")


def run(code: str, **environment: str) -> str:
    """Run Python as where nothing is said of telemetry but what ``environment`` says."""
    unset = (*NAMES, "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "CI", "PYTEST_CURRENT_TEST")
    inherited = {key: value for key, value in os.environ.items() if key not in unset}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, ["true", "true", "1"]), ({"DO_NOT_TRACK": "0"}, ["true", "0", "1"])],
)
def test_nothing_is_sent_to_others_unless_the_user_says_so(
    given: dict[str, str], expected: list[str]
) -> None:
    code = f"import os, medvq; print(*[os.environ[name] for name in {NAMES}])"
    assert run(code, **given).split() == expected


@pytest.mark.parametrize("library", ["onnxruntime", "monai", "mlflow"])
def test_no_library_keeps_a_number_of_the_machine_or_tells_its_maker(
    tmp_path: Path, library: str
) -> None:
    pytest.importorskip(library)
    run(f"import medvq.cli, {library}", HOME=str(tmp_path), MPLCONFIGDIR=str(tmp_path / "mpl"))
    kept = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert not kept & {"deviceid", "onnxruntime.db", "telemetry.json"}
