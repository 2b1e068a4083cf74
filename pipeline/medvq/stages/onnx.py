"""The command ``onnx``: an encoder, with its preprocessing, as an ONNX graph."""

from __future__ import annotations

import argparse
import json
import sys

from medvq.stages.command import (
    Command,
    add_artifacts_option,
    add_json_option,
    add_source_options,
    file_path,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is exported, and where to."""
    add_source_options(parser)
    parser.add_argument(
        "--out", type=file_path, help="the file (default: NAME.onnx in the folder of artifacts)"
    )
    add_artifacts_option(parser)
    add_json_option(parser)


def run(parsed: argparse.Namespace) -> int:
    """Write the graph, and compare what ONNX Runtime computes with it."""
    from medvq.export.onnx import write_onnx
    from medvq.export.source import export_source

    source = export_source(parsed)
    file = (parsed.out or parsed.artifacts / f"{source.config.name}.onnx").absolute()
    report = write_onnx(source, file)
    for line in report.lines():
        print(line, file=sys.stderr)
    print(json.dumps(report.to_json()) if parsed.json else file)
    return 0


ONNX = Command(
    name="onnx",
    help="write an encoder, with its preprocessing and a probe, as an ONNX graph",
    add_options=add_options,
    run=run,
    writes=lambda parsed: (parsed.artifacts, *([parsed.out.parent] if parsed.out else [])),
)
