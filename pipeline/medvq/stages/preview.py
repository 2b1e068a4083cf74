"""The command ``preview``: files as the pipeline sees them before resizing."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvq.stages.command import Command, add_json_option, file_path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the files to show and the folder of their pictures."""
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument(
        "--out",
        type=file_path,
        default=Path("preview"),
        help="folder that the pictures are written to (default: %(default)s)",
    )
    add_json_option(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print a line for each file, as soon as it has been read; return 2 where none was."""
    from medvq.datasets.walk import shown
    from medvq.images.preview import as_line, preview

    previews = []
    for one in preview(parsed.files, parsed.out):
        previews.append(one)
        print(shown(one.line()), flush=True)
    if parsed.json:
        print(as_line(previews))
    return 0 if any(one.status == "read" for one in previews) else 2


PREVIEW = Command(
    name="preview",
    help="show files as the pipeline sees them before resizing, and what was done to them",
    add_options=add_options,
    run=run,
    writes=lambda parsed: (parsed.out,),
)
