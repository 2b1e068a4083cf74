"""Run what is asked for; print the table, write the page."""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from medvq.device import choose_device
from medvq.flow import commit

from benchmarks.speed.data import measure_alignment, measure_probe, measure_reading
from benchmarks.speed.epoch import measure_loader
from benchmarks.speed.extraction import (
    EVERYTHING,
    extract_part,
    extraction_profile,
    measure_extraction,
    measure_extraction_processes,
    products_part,
)
from benchmarks.speed.measure import Bench, Row
from benchmarks.speed.memory import measure_pretraining_memory, measure_quantizer_memory, peak
from benchmarks.speed.quantizer import measure_quantizer
from benchmarks.speed.scaling import draw, scaling
from benchmarks.speed.training import measure_compilation, measure_training, training_profile

DOCS = Path(__file__).parents[2] / "docs"
MEASURES = (
    measure_quantizer,
    measure_quantizer_memory,
    measure_training,
    measure_loader,
    measure_reading,
    measure_alignment,
    measure_extraction,
    measure_extraction_processes,
    measure_probe,
    measure_pretraining_memory,
)


TRIED = (
    "",
    "## Tried",
    "",
    "- Freed memory is kept between steps, in MedVQ's stages and in MedVQ's rows here; the others' "
    "rows have glibc's own ceiling. It is a fifth of the 64-px step, which page faults took.",
    "- `torch.compile` of encoder and decoder (`python -m benchmarks.speed --only compilation`), "
    "gains little at 64 px, loses at 128, and takes more than a minute: nothing is compiled.",
    "- bfloat16 under autocast is slower on a processor without instructions for it, and is not "
    "used there; so is the first convolution as patches times a matrix.",
    "- A step against its convolutions: in bfloat16 those are 1.6 times as fast, and what is "
    "beside them is not: batch normalisation, the quantizer's product and search in float32, the "
    "casts, the optimiser. Kept out of it already: a one-hot "
    "matrix, page faults.",
    "- Extraction against MONAI's codes: beside the codes, MedVQ's encoder and the search, it "
    "computes what they are compared with, an untrained encoder above all, and Parquet (the table "
    "above); the row of codes alone compares codes with codes. Every core has images of its own (a "
    "quarter faster than all cores on each), and a thread writes; bfloat16 there would give other "
    "codes on other machines.",
    "- Two processes on two hardware threads of one core cannot be 1.7 times as fast as one: the "
    "row of matrix products alone says what they can be.",
)


def table(rows: list[Row]) -> list[str]:
    """The rows as lines of Markdown."""
    lines = [
        "| figure | against | MedVQ | other | ratio | must reach |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        sign = "at most" if row.lower_is_better else "at least"
        must = "" if row.must_reach is None else f"{sign} {row.must_reach:g}"
        figures = " | ".join(f"{_short(value)} {row.unit}" for value in (row.medvq, row.other))
        lines.append(f"| {row.figure} | {row.against} | {figures} | {row.ratio:.2f} | {must} |")
    return lines


def _short(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no page")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--only", help="measure what has this in its name, write no page")
    parser.add_argument("--without", default=" ", help="leave out what has this in its name")
    parser.add_argument("--peak", nargs=2, metavar=("WHAT", "KIND"), help=argparse.SUPPRESS)
    parser.add_argument("--extract", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--products", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    warnings.simplefilter("ignore")
    device = choose_device(parsed.device)
    if parsed.peak:
        print(peak(*parsed.peak, torch.device(device)))
        return
    if parsed.extract:
        extract_part(parsed.extract)
        return
    if parsed.products:
        products_part()
        return
    # Before anything is written: the page itself would make the commit a dirty one.
    made_at = commit()
    bench = Bench(device, parsed.quick)
    rows: list[Row] = []
    # Compilation is a question of its own, and takes minutes to answer.
    for measure in (*MEASURES, measure_compilation) if parsed.only else MEASURES:
        name = measure.__name__
        if (parsed.only and parsed.only not in name) or parsed.without in name:
            continue
        found = measure(bench)
        print("\n".join(table(found)[2 if rows else 0 :]), flush=True)
        rows += found
    if not parsed.quick and not parsed.only:
        _write(rows, bench, made_at, parsed.docs)
    if parsed.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


def _write(rows: list[Row], bench: Bench, made_at: str, docs: Path) -> None:
    name = "SPEED-cuda" if bench.cuda else "SPEED"
    docs.mkdir(parents=True, exist_ok=True)
    draw(scaling(bench), docs / f"{name}.png")
    machine = torch.cuda.get_device_name() if bench.cuda else platform.machine()
    lines = [
        "# Speed and memory",
        "",
        f"Made by `make benchmark-speed{' DEVICE=cuda' if bench.cuda else ''}` on {machine}, "
        f"{os.cpu_count()} processors, torch {torch.__version__}, commit `{made_at}`. "
        "Medians; what is compared ran in turn in one process.",
        "",
        *table(rows),
        "",
        f"![cost by size]({name}.png)",
        "",
        "## Where the time of a training step goes",
        "",
        *training_profile(bench),
        *(() if bench.cuda else _of_extraction(rows, bench)),
        *(() if bench.cuda else TRIED),
    ]
    (docs / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _of_extraction(rows: list[Row], bench: Bench) -> list[str]:
    lines = []
    for stage in (row for row in rows if row.figure.startswith(EVERYTHING) and row.must_reach):
        lines += ["", "## Where the time of an extraction goes", ""]
        lines += extraction_profile(bench, stage)
    return lines


if __name__ == "__main__":
    main()
