"""``make benchmark-suite``: every row on every data set, or their validation figures alone.

Writes ``docs/results/suite.md`` and a picture; with ``--only`` a page of those data sets. What is
up to date is not run again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from medvq.cli import add_options, status
from medvq.flow import commit
from medvq.stages.stage import RunOptions
from medvq.summaries import JsonObject

from benchmarks.page import RESULTS
from benchmarks.study import Study, names_of
from benchmarks.suite.arms import ARMS, DATA_SETS, Arm
from benchmarks.suite.cells import Cell, Row, mean_lead, mean_of_parts, score
from benchmarks.suite.page import show_validation, write

TRAININGS = 3


def judge(
    study: Study, name: str, fraction: float, arms: Sequence[Arm], trainings: int, part: int = 0
) -> Cell:
    """Return the rows of a part of a data set at a share of its labels."""
    predicted = [arm.predict(study, fraction, trainings) for arm in arms]
    summary, rows = predicted[0][0], [row for _, rows in predicted for row in rows]
    tables = [table for row in rows for subsets in row.trainings for table in subsets]
    judged = {tuple(table["image_id"]) for table in tables}
    assert len(judged) == 1, f"rows of {name} are judged on different images"
    return Cell(
        name,
        fraction,
        summary.labels,
        summary.headline,
        [
            Row(
                row.features,
                len(row.trainings),
                row.validation,
                score(row.trainings, summary.headline, study.config(), part),
            )
            for row in rows
        ],
    )


def as_rows(cells: Sequence[Cell], validation_only: bool) -> Iterator[JsonObject]:
    """Yield the rows of the JSON object that ``--json`` prints."""
    for cell in cells:
        for row in cell.rows:
            about = {
                "dataset": cell.dataset,
                "label_fraction": cell.label_fraction,
                "features": row.features,
            }
            validation = {"validation": asdict(row.validation) if row.validation else None}
            if not validation_only:
                found = row.interval(cell.headline)
                about |= {"mean": found.mean, "ci95": found.ci95}
            yield about | {"seeds": row.trainings} | validation


def studies_of(name: str, parsed: argparse.Namespace) -> list[Study]:
    """Return the studies of a data set's parts, with the user's settings over its own."""
    places = (parsed.data_root, parsed.data_mirror, parsed.artifacts)
    options = RunOptions(*places, device=parsed.device, accept_code=parsed.accept_code)
    data_set = DATA_SETS[name]
    return [
        Study(
            "suite",
            "benchmark-suite",
            data_set.config,
            (*data_set.settings, *part, *parsed.set),
            options,
        )
        for part in data_set.parts
    ]


def main(parsed: argparse.Namespace) -> int:
    """Judge MedVQ and its rivals on the data sets of the suite."""
    code = commit()
    studies = {name: studies_of(name, parsed) for name in parsed.only or DATA_SETS}
    # A data set that is missing is told of before any training.
    for study in chain.from_iterable(studies.values()):
        study.run("ingest", study.config())
    chosen = [ARMS[name] for name in parsed.arms or ARMS]
    if parsed.validation:
        chosen = [arm for arm in chosen if arm.is_validated]
    cells = [
        mean_of_parts(
            [judge(part, name, fraction, arms, parsed.seeds, n) for n, part in enumerate(parts)]
        )
        for name, parts in studies.items()
        if (arms := [arm for arm in chosen if arm.suits(parts[0].config())])
        for fraction in DATA_SETS[name].fractions
    ]
    if parsed.validation:
        print(show_validation(cells))
    else:
        print(write(parsed.results, cells, command_of(parsed), code, parsed.only or ()))
    if parsed.json:
        mean = None if parsed.validation else mean_lead(cells)
        lead = {"medvq_minus_best_baseline": asdict(mean) if mean else None}
        rows = list(as_rows(cells, parsed.validation))
        print(json.dumps({"rows": rows, **lead}, allow_nan=False))
    return 0


def command_of(parsed: argparse.Namespace) -> str:
    """Return the command that makes the page."""
    lists = {"ONLY": ",".join(parsed.only or ()), "ARMS": ",".join(parsed.arms or ())}
    values = {**lists, "SEEDS": str(parsed.seeds), "SET": " ".join(parsed.set)}
    given = [f"{name}={shlex.quote(value)}" for name, value in values.items() if value]
    return " ".join(["make benchmark-suite", *given])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.suite", description=main.__doc__)
    add_options(parser)
    parser.add_argument("--only", type=names_of([*DATA_SETS]), help="data sets: a,b")
    parser.add_argument("--arms", type=names_of([*ARMS]), help="groups of rows: a,b")
    parser.add_argument("--seeds", type=int, default=TRAININGS, help="trainings of each row")
    parser.add_argument("--validation", action="store_true", help="validation figures alone")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--json", action="store_true", help="rows as JSON on the last line")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse()
    sys.exit(status(lambda: main(options), options.artifacts))
