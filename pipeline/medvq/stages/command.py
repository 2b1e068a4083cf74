"""What a command beside the stages is: it answers from artifacts and makes none.

Like a stage, a command is one light module in ``stages/``; what computes is imported inside the
functions that use it.
"""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medvq.config_file import load_config
from medvq.errors import UserError

_MOST_SHOWN = 200  # characters of a path that no file can have


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


def file_path(text: str) -> Path:
    """Return the path of a file or folder, which need not be there.

    Raises
    ------
    argparse.ArgumentTypeError
        There can be none: a name is too long, links lead in a circle, or nothing is named, which
        would be the folder that one is in.
    """
    if not text:
        raise argparse.ArgumentTypeError("no file or folder is named")
    try:
        Path(text).stat()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            start = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
            reason = str(error.strerror).lower()
            raise argparse.ArgumentTypeError(f"{start} cannot be used ({reason})") from error
    return Path(text)


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an option that is a whole number within bounds."""

    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} to {most}")
        return int(text)

    return number


def add_artifacts_option(parser: argparse.ArgumentParser) -> None:
    """Add the folder of artifacts."""
    parser.add_argument(
        "--artifacts",
        type=file_path,
        default=os.environ.get("ARTIFACTS") or "artifacts",
        help="folder that stages write to (default: %(default)s)",
    )


def add_dataset_option(parser: argparse.ArgumentParser) -> None:
    """Add the name of a data set whose artifacts are read."""
    parser.add_argument(
        "--dataset",
        type=_dataset,
        default=os.environ.get("DATASET") or "kermany",
        help="name of the data set, or the path of its configuration (default: %(default)s)",
    )


def dataset_name(text: str) -> str:
    """Return the name of a data set, which its folder of artifacts has.

    Raises
    ------
    UserError
        ``text`` is the path of a configuration that cannot be read.
    """
    return load_config(text).name if Path(text).suffix in (".yaml", ".yml") else text


def _dataset(text: str) -> str:
    try:
        return dataset_name(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for one JSON object on the last line of the output."""
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line of the output"
    )


def add_probe_option(parser: argparse.ArgumentParser) -> None:
    """Add the fitted probe, by default the last one of the data set at hand."""
    parser.add_argument(
        "--probe",
        type=file_path,
        default=os.environ.get("PROBE") or None,
        help="the artifact of a fitted probe (default: the last one of DATASET)",
    )


def chosen_probe(parsed: argparse.Namespace) -> Path:
    """Return the probe that is named, else the last one of DATASET below the folder of artifacts.

    Raises
    ------
    UserError
        DATASET is a configuration that cannot be read.
    """
    if parsed.probe is not None:
        return Path(parsed.probe)
    root = getattr(parsed, "artifacts", Path(os.environ.get("ARTIFACTS") or "artifacts"))
    return Path(root) / dataset_name(os.environ.get("DATASET") or "kermany") / "probe" / "latest"


def check_image(parsed: argparse.Namespace) -> None:
    """Refuse a probe or an image that is not there, before what reads them is loaded.

    Raises
    ------
    UserError
        There is no such probe or file; what may be DICOM is not named.
    """
    from medvq.images.formats import may_show
    from medvq.storage import artifacts

    image: Path = parsed.image
    artifacts.finished(chosen_probe(parsed), "probe")
    with suppress(OSError):  # of a disk or a share, which reading the image says
        if image.is_file():
            return
        if image.exists():
            raise UserError(f"{image} is no file: name the file of an image")
        shown = image if may_show(str(image), dicom=False) else "the file"
        raise UserError(f"{shown}: the file is not there")


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is exported."""
    parser.add_argument(
        "--config",
        default="kermany",
        help="the data set whose encoder it is (default: %(default)s)",
    )
    parser.add_argument(
        "--probe", type=file_path, help="the artifact of a fitted probe, exported with its encoder"
    )
    parser.add_argument(
        "--features", nargs="+", default=[], help="without a probe: the feature sets to return"
    )
