"""The command ``bundle``: an encoder, and a probe on it, as a MONAI bundle."""

from __future__ import annotations

import argparse
import json

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
        "--out", type=file_path, help="the folder (default: NAME-bundle in the folder of artifacts)"
    )
    parser.add_argument("--zip", action="store_true", help="pack the folder into a zip file, too")
    add_artifacts_option(parser)
    add_json_option(parser)


def run(parsed: argparse.Namespace) -> int:
    """Write the bundle."""
    from medvq.export.bundle import write_bundle
    from medvq.export.source import export_source

    source = export_source(parsed)
    folder = (parsed.out or parsed.artifacts / f"{source.config.name}-bundle").absolute()
    write_bundle(source, folder, packed=parsed.zip)
    made = f"{folder}.zip" if parsed.zip else str(folder)
    print(
        json.dumps({"bundle": made, "features": list(source.network.names)})
        if parsed.json
        else made
    )
    return 0


BUNDLE = Command(
    name="bundle",
    help="write an encoder, with its preprocessing and a probe, as a MONAI bundle",
    add_options=add_options,
    run=run,
    writes=lambda parsed: (parsed.artifacts, *([parsed.out.parent] if parsed.out else [])),
)
