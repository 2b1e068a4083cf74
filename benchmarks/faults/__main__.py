"""Try all faults, or as many as ``--number`` says; print the figures, write the page."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import medvq
from medvq import stages
from medvq.flow import commit

from benchmarks.faults.children import Broken, Skipped, preload
from benchmarks.faults.endurance import GUARDED, guard_costs, soak
from benchmarks.faults.faults import FAULTS, try_fault
from benchmarks.faults.flips import undetected_flips
from benchmarks.faults.kills import SIGNALS, kill_flow
from benchmarks.faults.lab import Lab, own_mounts
from benchmarks.faults.poison import poison, write_corpus
from benchmarks.faults.surroundings import CHECKS
from benchmarks.faults.tiny import FLOW, STAGES
from benchmarks.page import RESULTS, Figure, Section, demand, table, write_page

FULL = 200
"""The number of kills at which everything else is tried in full, too."""
_KILLS, _POISONED = 21, 2000  # in a flow, and between two looks at how far it is
_SEED = 6  # of the cells of a short run: at N=20 none that waits for a server
FAMILIES = ("kills", "faults", "poison", "flips", "checks", "soak", "guards")


@dataclass(frozen=True)
class Cell:
    """What one fault came to at one stage, or in one check of the whole flow.

    Attributes
    ----------
    number : how often it was tried.
    outcome : ``refused``, ``done`` or other words; ``skipped``, or ``BROKEN``.
    detail : why it was skipped or is broken.
    """

    family: str
    fault: str
    stage: str
    number: int
    outcome: str
    detail: str = ""


class Ledger:
    """Cells that were tried, on disk: an interrupted benchmark goes on where it stopped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.cells = [Cell(**json.loads(line)) for line in lines]

    def add(self, cell: Cell) -> None:
        """Write a cell down and show it."""
        self.cells.append(cell)
        with self.file.open("a") as stream:
            stream.write(json.dumps(asdict(cell)) + "\n")
        words = f"{cell.stage or 'flow'}: {cell.fault}: {cell.number} x {cell.outcome}"
        print(f"{words} {cell.detail}".rstrip(), flush=True)

    def of(self, family: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.family == family]

    def tried(self, family: str) -> int:
        """Return how often anything of a family was tried."""
        return sum(cell.number for cell in self.of(family) if cell.outcome != "skipped")

    def kept(self, family: str) -> int:
        """Return how often the promise was kept."""
        return self.tried(family) - sum(
            cell.number for cell in self.of(family) if cell.outcome == "BROKEN"
        )

    def add_all(self, family: str, found: Counter[tuple[str, str, str, str]]) -> None:
        """Write down how often there was a fault, a stage, an outcome and its detail."""
        for (fault, stage, outcome, detail), count in sorted(found.items()):
            self.add(Cell(family, fault, stage, count, outcome, detail))

    def attempt(self, family: str, fault: str, stage: str, call: Callable[[], str]) -> None:
        """Try what was not tried before; what breaks a promise is a result like any other."""
        if any((c.family, c.fault, c.stage) == (family, fault, stage) for c in self.cells):
            return
        outcome, detail = "BROKEN", ""
        try:
            outcome = call()
        except Skipped as skipped:
            outcome, detail = "skipped", str(skipped)
        except Broken as broken:
            detail = str(broken)
        self.add(Cell(family, fault, stage, 1, outcome, detail))


def _kills(lab: Lab, ledger: Ledger, number: int) -> None:
    while (done := ledger.tried("kills")) < number:
        kills = min(_KILLS, number - done)
        found = kill_flow(lab, done, kills, thorough=number >= FULL)
        outcomes = ((k.signal, k.stage, k.outcome, k.problem) for k in found)
        ledger.add_all("kills", Counter(outcomes))


def _faults(lab: Lab, ledger: Ledger, number: int) -> None:
    cells = [(fault, stage) for fault in FAULTS for stage in lab.stages]
    if number < FULL:
        cells = random.Random(_SEED).sample(cells, max(1, number // 10))  # noqa: S311  # no secret
    for fault, stage in cells:
        ledger.attempt("faults", fault, stage, partial(try_fault, lab, stage, FAULTS[fault]))


def _poison(lab: Lab, ledger: Ledger, number: int) -> None:
    corpus, mirror = lab.scratch / "corpus", os.environ.get("DATA_MIRROR", "")
    shutil.rmtree(corpus, ignore_errors=True)
    write_corpus(corpus, lab.states / "done", Path(mirror) if Path(mirror).is_dir() else None)
    while (done := ledger.tried("poison")) < 100 * number:
        found = poison(corpus, range(done, min(done + _POISONED, 100 * number)))
        ledger.add_all("poison", Counter((p.kind, "", p.outcome, p.problem) for p in found))


def _flips(lab: Lab, ledger: Ledger, number: int) -> None:
    if ledger.of("flips"):
        return
    missed = undetected_flips(lab.states / "done" / "artifacts", 5 * number)
    ledger.add(Cell("flips", "found", "", 5 * number - len(missed), "refused"))
    for place in missed[:20]:
        ledger.add(Cell("flips", "not found", "", 1, "BROKEN", place))


def _checks(lab: Lab, ledger: Ledger, number: int) -> None:
    for name, check in CHECKS.items():
        if number >= FULL or "results" not in name:
            ledger.attempt("checks", name, "", partial(check, lab))


def _soak(lab: Lab, ledger: Ledger, number: int) -> None:
    if ledger.of("soak"):
        return
    flows = max(4, number // 4)
    memory, descriptors = soak(lab, flows)
    ledger.add(Cell("soak", "memory, MiB per flow", "", flows, f"{memory:.3f}"))
    ledger.add(Cell("soak", "descriptors per flow", "", flows, f"{descriptors:.3f}"))


def _guards(lab: Lab, ledger: Ledger, number: int) -> None:
    if ledger.of("guards"):
        return
    for stage, cost in guard_costs(lab, quick=number < FULL).items():
        ledger.add(Cell("guards", "all guards", stage, 1, f"{cost:.2f}"))
    for how in ("hangs", "500", "down"):
        cost = guard_costs(lab, number < FULL, how)["pretrain"]
        ledger.add(Cell("guards", f"tracking server: {how}", "pretrain", 1, f"{cost:.2f}"))


def figures(ledger: Ledger, number: int) -> Iterator[Figure]:
    """Yield what the benchmark measures against what it must reach."""
    for family, what, times in (
        ("kills", "kills survived with an identical result", number),
        ("poison", "mutated files read or refused in words", 100 * number),
        ("flips", "flipped bits in artifacts found", 5 * number),
        ("checks", "checks of the whole flow kept", ledger.tried("checks")),
    ):
        if ledger.of(family):
            yield Figure(what, ledger.kept(family), times)
    if cells := ledger.of("faults"):
        matrix = [c for c in [*cells, *ledger.of("kills")] if c.outcome != "skipped"]
        places = {(c.fault, c.stage) for c in matrix}
        broken = {(c.fault, c.stage) for c in matrix if c.outcome == "BROKEN"}
        yield Figure("cells of the matrix", len(places), 70 if number >= FULL else None)
        yield Figure("cells that break a promise", len(broken), 0, lower_is_better=True)
    growth = {"memory, MiB per flow": 1.0, "descriptors per flow": 0.1}
    for cell in ledger.of("soak"):
        name = f"soak of {cell.number} flows: {cell.fault}"
        yield Figure(name, float(cell.outcome), growth[cell.fault], lower_is_better=True)
    for cell in ledger.of("guards"):
        most = GUARDED[cell.stage] if number >= FULL else None
        name = f"{cell.fault}, per cent of {cell.stage}"
        yield Figure(name, float(cell.outcome), most, lower_is_better=True)


def sections(ledger: Ledger, rows: Sequence[Figure]) -> list[Section]:
    """Return the tables of the page."""
    cells: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for cell in [*ledger.of("kills"), *ledger.of("faults")]:
        cells[cell.fault, cell.stage][cell.outcome] += cell.number
    names = [*(s.name for s in SIGNALS), *FAULTS]

    def words(fault: str, stage: str) -> str:
        found = cells[fault, stage].items()
        return ", ".join(f"{count} {name}" if count > 1 else name for name, count in found)

    matrix = ((fault, *(words(fault, stage) for stage in STAGES)) for fault in names)
    others: Counter[tuple[str, str]] = Counter()
    for cell in [*ledger.of("poison"), *ledger.of("checks")]:
        others[cell.fault, cell.outcome] += cell.number
    broken = [c for c in ledger.cells if c.detail]
    shown = ((r.figure, f"{r.value:g}", demand(r.must_reach, r.lower_is_better)) for r in rows)
    return [
        Section("Figures", table(("figure", "value", "must reach"), shown)),
        Section("Stages and faults", table(("fault", *STAGES), matrix), _MATRIX),
        Section(
            "Poisoned files and the whole flow",
            table(("what", "outcome", "times"), ((*key, n) for key, n in others.items())),
        ),
        Section(
            "Broken promises, and what was skipped",
            table(
                ("what", "stage", "times", "why"),
                ((c.fault, c.stage, c.number, c.detail.replace("|", "/")) for c in broken),
            ),
        ),
    ]


_MATRIX = (
    "*refused*: the stage ended with status 2 and one line; *done*: it went on regardless; "
    "*identical*: it was killed and started again. In each case the same stage, run once more "
    "without the fault, came to the undisturbed result: the same files, the same metrics, the same "
    "curves in MLflow, with nothing lying about."
)


def _code() -> str:
    """Return a hash of what is tried and of what tries it: other code starts anew."""
    folders = (Path(medvq.__file__).parent, Path(__file__).parent)
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    content = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()[:12]


def _draw_nothing() -> None:
    """Leave out the figures, which are half the time of the smallest set's stages."""
    stages.STAGES.update({n: replace(s, draw=None) for n, s in stages.STAGES.items()})


def main() -> None:
    """Try faults, print the figures, write the page."""
    parser = argparse.ArgumentParser("python -m benchmarks.faults", description=main.__doc__)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--number", type=int, default=FULL, help="kills; the rest in proportion")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, help="only these, and no page")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on the last line")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    parsed = parser.parse_args()
    made_at = commit()
    os.environ["OMP_NUM_THREADS"] = "1"
    preload()
    own_mounts()
    home = (parsed.artifacts / "faults").absolute()
    full = parsed.number >= FULL
    flow = STAGES if full else FLOW
    if not full:
        _draw_nothing()
    states = home / f"states-{_code()}-{len(flow)}"
    lab = Lab(states, home / f"scratch-{os.getpid()}", flow)
    lab.scratch.mkdir(parents=True)
    ledger = Ledger(home / f"cells-{_code()}-{parsed.number}.jsonl")
    families = dict(
        zip(FAMILIES, (_kills, _faults, _poison, _flips, _checks, _soak, _guards), strict=True)
    )
    try:
        lab.prepare()
        for name in parsed.only or FAMILIES:
            families[name](lab, ledger, parsed.number)
    finally:
        shutil.rmtree(lab.scratch, ignore_errors=True)
    rows = list(figures(ledger, parsed.number))
    shown = ((r.figure, f"{r.value:g}", demand(r.must_reach, r.lower_is_better)) for r in rows)
    print(table(("figure", "value", "must reach"), shown).to_string(index=False, header=False))
    if full and not parsed.only:
        write_page(
            parsed.results / "faults.md",
            title="Faults",
            command="make benchmark-faults",
            commit=made_at,
            introduction="What the guarantees say, tried by force on the smallest phantom set.",
            sections=sections(ledger, rows),
        )
    if parsed.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
