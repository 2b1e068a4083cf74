"""A small part of the fault benchmark, from seeds: the whole of it is ``make benchmark-faults``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Twenty kills and what goes with so few, in a process that has no threads of pytest's."""
    folder = tmp_path_factory.mktemp("faults")
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.faults", "--json", "--number", "20",
            "--artifacts", str(folder), "--only", "kills", "faults", "flips",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)  # which cells broke, where one did
    return {row["figure"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("kills survived with an identical result", 20),
        ("cells that break a promise", 0),
        ("flipped bits in artifacts found", 100),
    ],
)
def test_promises_are_kept_under_force(
    figures: dict[str, dict[str, Any]], figure: str, value: float
) -> None:
    assert figures[figure]["value"] == figures[figure]["must_reach"] == value
