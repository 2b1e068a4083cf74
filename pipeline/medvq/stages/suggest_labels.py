"""The command ``suggest-labels``: typical and diverse patients to label first."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medvq.config import Config
from medvq.errors import UserError
from medvq.stages.command import (
    Command,
    add_artifacts_option,
    add_dataset_option,
    add_json_option,
    file_path,
)
from medvq.wording import counted

_FILE = "file"
_COLUMNS = ["rank", _FILE, "image_id", "subject_id", "label"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the data set, how many patients to suggest, and where to write."""
    add_dataset_option(parser)
    parser.add_argument(
        "--number", type=int, help="of patients to suggest (default: 40, or as many as there are)"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="choose among all training patients, not only those without a label",
    )
    parser.add_argument(
        "--out",
        type=file_path,
        default=Path("to-label"),
        help="folder that the table and the sheet are written to (default: %(default)s)",
    )
    add_artifacts_option(parser)
    add_json_option(parser)


def run(parsed: argparse.Namespace) -> int:
    """Write a table and a contact sheet, and print what to open."""
    import numpy as np

    from medvq.datasets.manifest import read_manifest
    from medvq.explain.suggestions import suggest_patients
    from medvq.report.suggestions_figure import draw_suggestions
    from medvq.storage import artifacts
    from medvq.storage.publication import write_bytes

    if parsed.number is not None and parsed.number < 1:
        raise UserError(f"N={parsed.number} patients cannot be suggested; ask for 1 or more")
    sheet, file = (parsed.out.absolute() / f"to-label.{suffix}" for suffix in ("png", "csv"))
    folder = parsed.artifacts / parsed.dataset / "extract" / "latest"
    extract = artifacts.find_linked(folder)
    if extract is None:
        raise UserError(
            f"{folder} is no feature store; run 'make extract-features DATASET=...' first"
        )
    names = _columns(extract.config())
    if not _is_blank(file, names):
        raise UserError(
            f"{file} has been filled in and is not overwritten: move it, or choose another OUT"
        )
    artifacts.verify(extract)
    ingest = artifacts.source(extract, "ingest")
    artifacts.verify(ingest, "manifest.csv", "originals.npy")
    chosen = suggest_patients(extract.folder, extract.config(), parsed.number, among_all=parsed.all)
    manifest = read_manifest(ingest.folder / "manifest.csv")
    table = chosen.assign(file=manifest["path"].fillna("").to_numpy()[chosen["row"]])
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    originals = np.load(ingest.folder / "originals.npy", mmap_mode="r")
    draw_suggestions(originals, table["row"], sheet)
    table = table.assign(label="")[_COLUMNS].set_axis(names, axis=1)
    write_bytes(file, table.to_csv(index=False).encode())
    print(f"{counted(len(table), 'patient')} to label; fill in the column 'label': {file}")
    print(json.dumps({"table": str(file), "sheet": str(sheet)}) if parsed.json else sheet)
    return 0


def _columns(config: Config) -> list[str]:
    """Return the columns of the table; that of files has the name that it has in the labels."""
    labels = getattr(config.source, "labels", None)
    key = labels.key if labels is not None and labels.join == "path" else None
    return [key if key and name == _FILE else name for name in _COLUMNS]


def _is_blank(table: Path, names: list[str]) -> bool:
    """Say whether a table is not there, or is as it was written: its last column is empty."""
    try:
        header, *rows = table.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return True
    except ValueError:  # no text, or no line
        return False
    known = {",".join(names), ",".join(_COLUMNS)}
    return header in known and all(row.endswith(",") for row in rows)


SUGGEST_LABELS = Command(
    name="suggest-labels",
    help="choose typical and diverse patients to label first, without any label",
    add_options=add_options,
    run=run,
    writes=lambda parsed: (parsed.out,),
)
