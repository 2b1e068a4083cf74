"""Measure what is asked for; print the table, write the page."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from medvq.device import choose_device
from medvq.flow import commit

from benchmarks.page import RESULTS, Section, demand, table, write_page
from benchmarks.speed import prediction, reading, stages, steps
from benchmarks.speed.measure import Bench, Row

MEASURES = {
    "quantizer": steps.measure_quantizer,
    "training": steps.measure_training,
    "epoch": stages.measure_epoch,
    "extraction": stages.measure_extraction,
    "reading": reading.measure_reading,
    "dicom": reading.measure_dicom,
    "ingest": reading.measure_ingest,
    "predict": prediction.measure_prediction,
    "memory": stages.measure_memory,
}
ON_GPU = ("quantizer", "training", "epoch", "extraction", "memory")
"""What a GPU has a part in; the rest is measured on processors alone."""


def rows_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the rows as a table of a page."""
    cells = (
        (
            row.figure,
            row.against,
            f"{_short(row.medvq)} {row.unit}",
            f"{_short(row.other)} {row.unit}",
            f"{row.ratio:.2f}",
            demand(row.must_reach, row.lower_is_better),
        )
        for row in rows
    )
    return table(("figure", "against", "MedVQ", "other", "ratio", "must reach"), cells)


def _short(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=main.__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no page")
    parser.add_argument("--json", action="store_true", help="the rows as JSON on the last line")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--only", nargs="+", choices=MEASURES, help="only these, and no page")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    warnings.simplefilter("ignore")
    device = choose_device(parsed.device)
    if parsed.peak:
        what, kind = parsed.peak
        print(stages.peak(what, kind, torch.device(device)))
        return
    made_at, bench, rows = commit(), Bench(device, parsed.quick), list[Row]()
    for name in parsed.only or (ON_GPU if bench.cuda else MEASURES):
        found = MEASURES[name](bench)
        print(rows_table(found).to_string(index=False, header=not rows), flush=True)
        rows += found
    if not parsed.quick and not parsed.only:
        _write(rows, bench, made_at, parsed.results)
    if parsed.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


def _write(rows: Sequence[Row], bench: Bench, made_at: str | None, results: Path) -> None:
    machine = f"on {torch.cuda.get_device_name()}, " if bench.cuda else ""
    write_page(
        results / f"speed{'-cuda' if bench.cuda else ''}.md",
        title="Speed and memory",
        command=f"make benchmark-speed{' DEVICE=cuda' if bench.cuda else ''}",
        commit=made_at,
        introduction=f"Medians, {machine}torch {torch.__version__}; what is compared ran in turn "
        "in one process. What was tried besides is in [speed-notes.md](speed-notes.md).",
        sections=[Section("Figures", rows_table(rows))],
    )


if __name__ == "__main__":
    main()
