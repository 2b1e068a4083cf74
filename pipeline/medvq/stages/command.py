"""What a command beside the stages is: it answers from artifacts and makes none.

Like a stage, a command is one light module in ``stages/``; what computes is imported inside the
functions that use it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Attributes
    ----------
    name : of the command.
    help : one line for the command line.
    add_options : adds its options to a parser.
    run : does the work and returns the exit status. ``parsed.ensurer`` is a function from
        :class:`~medvq.stages.stage.RunOptions` to an :class:`~medvq.stages.stage.Ensure`.
    writes : the folders that it writes to, of its parsed options, whose disks may refuse.
    """

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    writes: Callable[[argparse.Namespace], tuple[Path, ...]]


def add_artifacts_option(parser: argparse.ArgumentParser) -> None:
    """Add the folder of artifacts."""
    parser.add_argument(
        "--artifacts",
        type=Path,
        default=Path(os.environ.get("ARTIFACTS") or "artifacts"),
        help="folder that stages write to (default: %(default)s)",
    )


def add_dataset_option(parser: argparse.ArgumentParser) -> None:
    """Add the name of a data set whose artifacts are read."""
    parser.add_argument(
        "--dataset",
        default=Path(os.environ.get("DATASET") or "kermany").stem,
        help="name of the data set, of its folder of artifacts (default: %(default)s)",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for one JSON object on the last line of the output."""
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line of the output"
    )


def add_probe_option(parser: argparse.ArgumentParser) -> None:
    """Add the fitted probe, by default the last one of the data set at hand."""
    artifacts = Path(os.environ.get("ARTIFACTS") or "artifacts")
    dataset = Path(os.environ.get("DATASET") or "kermany").stem
    parser.add_argument(
        "--probe",
        type=Path,
        default=Path(os.environ.get("PROBE") or artifacts / dataset / "probe" / "latest"),
        help="the artifact of a fitted probe (default: %(default)s)",
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is exported."""
    parser.add_argument(
        "--config",
        default="kermany",
        help="the data set whose encoder it is (default: %(default)s)",
    )
    parser.add_argument(
        "--probe", type=Path, help="the artifact of a fitted probe, exported with its encoder"
    )
    parser.add_argument(
        "--features", nargs="+", default=[], help="without a probe: the feature sets to return"
    )
