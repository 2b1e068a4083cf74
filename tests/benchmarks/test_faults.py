"""A small part of the fault benchmark, from seeds: the whole of it is ``make benchmark-faults``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.__main__ import FAMILIES, Cell, Ledger, figures, sections
from benchmarks.faults.children import Broken, Ended
from benchmarks.faults.faults import Meant

Figures = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """Twenty kills, two cells of the matrix and 100 bits, in a process without threads."""
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.faults", "--json", "--number", "20",
            "--artifacts", str(tmp_path_factory.mktemp("faults")),
            "--only", "kills", "faults", "flips",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)  # which promise was broken, where one was
    return {row["figure"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("kills survived with an identical result", 20),
        ("cells that break a promise", 0),
        ("flipped bits in artifacts found", 100),
    ],
)
def test_promises_are_kept_under_force(tried: Figures, figure: str, value: float) -> None:
    assert tried[figure]["value"] == tried[figure]["must_reach"] == value


REFUSED = "tqdm 3%\nmedvq: no space left\n"


@pytest.mark.parametrize(
    ("status", "err", "meant", "kept"),
    [
        (0, "", Meant(), True),
        (2, REFUSED, Meant(), True),
        (2, REFUSED, Meant(refuses=True), True),
        (2, REFUSED, Meant(succeeds=True), False),
        (0, "", Meant(refuses=True), False),
        (1, "Traceback (most recent call last):\nOSError: full\n", Meant(), False),
        (2, "usage: something\n", Meant(), False),
        (-9, "", Meant(), False),
        (0, "medvq: late\n", Meant(notice="late"), True),
        (0, "medvq: late\nmedvq: late\n", Meant(notice="late"), False),
        (0, "", Meant(notice="late"), False),
    ],
)
def test_the_harness_tells_a_kept_promise_from_a_broken_one(
    status: int, err: str, meant: Meant, kept: bool
) -> None:
    ended = Ended(status, "", err, seconds=1.0, work=1.0, peak=1)
    if kept:
        meant.judge(ended)
    else:
        with pytest.raises(Broken):
            meant.judge(ended)


def test_a_ledger_goes_on_where_it_stopped_and_counts_what_was_broken(tmp_path: Path) -> None:
    file = tmp_path / "cells.jsonl"
    first = Ledger(file)
    first.add(Cell("kills", "SIGINT", "probe", 3, "identical"))
    first.add(Cell("kills", "SIGINT", "prior", 1, "BROKEN", "weights differ"))

    def fail() -> str:
        raise Broken("a traceback")

    first.attempt("faults", "disk is full", "probe", fail)
    again = Ledger(file)
    again.attempt("faults", "disk is full", "probe", lambda: "done")
    assert again.cells == first.cells
    rows = {row.figure: row for row in figures(again, 4)}
    assert rows["kills survived with an identical result"].value == 3
    assert rows["kills survived with an identical result"].must_reach == 4
    assert rows["cells that break a promise"].value == 2
    _, matrix, _, broken = sections(again, list(rows.values()))
    cells = matrix.table.set_index("fault")
    assert cells.loc["SIGINT", "probe"] == "3 identical"
    assert cells.loc["disk is full", "probe"] == "BROKEN"
    assert broken.table["why"].tolist() == ["weights differ", "a traceback"]
    assert {cell.family for cell in again.cells} < set(FAMILIES)
