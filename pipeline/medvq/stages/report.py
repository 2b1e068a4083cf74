"""The command ``report``: one page with the result of a data set and all that it stands on."""

from __future__ import annotations

import argparse
import json
import sys

from medvq.stages.command import (
    Command,
    add_artifacts_option,
    add_dataset_option,
    add_json_option,
    file_path,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the data set, and the probe that the report is about, which has a data set of its own."""
    add_dataset_option(parser)
    parser.add_argument(
        "--probe",
        type=file_path,
        help="the artifact of the probe (default: the data set's last one)",
    )
    add_artifacts_option(parser)
    add_json_option(parser)


def run(parsed: argparse.Namespace) -> int:
    """Write the page, and print what to open; that of a probe lies with its own data set."""
    from medvq.report.report_page import write_report
    from medvq.storage import artifacts

    folder = parsed.artifacts / parsed.dataset
    if parsed.probe is not None:
        folder = artifacts.finished(parsed.probe, "probe").folder.parents[1]
    file = write_report(folder, parsed.probe).absolute()
    if parsed.json:
        print(file, file=sys.stderr)
        print(json.dumps({"report": str(file), "bytes": file.stat().st_size}))
    else:
        print(file)
    return 0


REPORT = Command(
    name="report",
    help="write one page with the result of a data set, what to distrust, and where it comes from",
    add_options=add_options,
    run=run,
    writes=lambda parsed: (parsed.artifacts,),
)
