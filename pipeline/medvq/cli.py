"""Commands and nothing else: ``python -m medvq STAGE --config configs/kermany.yaml``."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from medvq import __version__
from medvq.config_file import config_file, load_config
from medvq.distributed import (
    LOST,
    dismiss,
    follow,
    launch,
    left_by_others,
    process_group,
    rank,
    world_size,
)
from medvq.errors import Notice, UserError
from medvq.flow import FLOW, Options, as_json, run

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_FULL = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, 2 for the user to mend, 130 interrupted."""
    parsed = _parser().parse_args(arguments)

    def command() -> int:
        if parsed.processes > 1 and world_size() == 1:
            return launch(parsed.processes, arguments or sys.argv[1:], parsed.device)
        with process_group(parsed.device):
            return _run(parsed)

    return status(command, parsed.artifacts)


def status(command: Callable[[], int], artifacts: Path) -> int:
    """What ``command`` returns; where it raises what the user can mend, 2, and one line says it.

    Parameters
    ----------
    artifacts : the folder that it writes to.
    """
    try:
        with _notices():
            return command()
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        if rank() == 0:
            print("medvq: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if left_by_others(error):
            return LOST
        refused = _refused_write(error, artifacts)
        if refused is None:
            raise
        message = f"cannot write to {artifacts} ({refused}); mend that, then run again"
    # All processes meet the same error; one tells it.
    if rank() == 0:
        print(f"medvq: {' '.join(message.split())}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _notices() -> Iterator[None]:
    """Show each :class:`Notice` as one line, once; other warnings as ever."""
    told: set[str] = set()
    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, Notice):
            usual(message, category, filename, lineno, file, line)
        elif str(message) not in told:
            told.add(str(message))
            print(f"medvq: {message}", file=sys.stderr)

    # Not catch_warnings: it would forget the filters of modules that are first imported within.
    warnings.simplefilter("always", Notice)
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _refused_write(error: Exception, folder: Path) -> str | None:
    """Why the disk took no more, where that is what ``error`` comes from."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return str(error.strerror).lower()
    # torch, SQLite and safetensors say it in types of their own.
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return "no space left on device" if shutil.disk_usage(existing).free < _FULL else None


def _run(parsed: argparse.Namespace) -> int:
    if rank() > 0:
        follow()
        return 0
    from medvq.report.tables import show

    config = load_config(config_file(parsed.config), tuple(parsed.set))
    options = Options(
        data_root=parsed.data_root,
        data_mirror=parsed.data_mirror,
        artifacts=parsed.artifacts,
        device=parsed.device,
        force=parsed.force,
        probe=getattr(parsed, "probe", None),
    )
    result = run(parsed.stage, config, options)
    dismiss()
    print(show(result), file=sys.stderr)
    if parsed.json:
        print(as_json(result))
    else:
        print(result["artifact"])
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of processes")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """Errors as one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"medvq: {message}; '{self.prog} --help' shows what there is\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m medvq",
        description="Features from unlabelled medical images that need few labels. "
        "Each stage runs the stages before it where they are not up to date.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for stage in FLOW.values():
        reads = f" Reads the artifacts of: {', '.join(stage.reads)}." if stage.reads else ""
        command = stages.add_parser(
            stage.name, help=stage.help, description=f"{stage.help.capitalize()}.{reads}"
        )
        command.add_argument(
            "--config",
            default=os.environ.get("DATASET") or "kermany",
            help="a name in configs/ or a path to a yaml file (default: %(default)s)",
        )
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override one value of the configuration, e.g. pretrain.epochs=3; repeatable",
        )
        command.add_argument(
            "--data-root",
            type=Path,
            default=Path(os.environ.get("DATA_ROOT") or "data"),
            help="folder of data sets, looked in first (default: %(default)s)",
        )
        command.add_argument(
            "--data-mirror",
            default=os.environ.get("DATA_MIRROR") or None,
            help="folder of data sets, read in place, or an address to download from, "
            "where DATA_ROOT has none",
        )
        command.add_argument(
            "--artifacts",
            type=Path,
            default=Path(os.environ.get("ARTIFACTS") or "artifacts"),
            help="folder that stages write to (default: %(default)s)",
        )
        command.add_argument(
            "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
        )
        command.add_argument(
            "--processes",
            type=_positive,
            default=os.environ.get("NPROC") or "1",
            metavar="N",
            help="that pretrain and extract together on this machine (default: %(default)s)",
        )
        if stage.name == "evaluate":
            command.add_argument(
                "--probe",
                type=Path,
                help="the artifact of a fitted probe, e.g. artifacts/kermany/probe/latest",
            )
        command.add_argument(
            "--force", action="store_true", help="run this stage although it is up to date"
        )
        command.add_argument(
            "--json", action="store_true", help="one JSON object on the last line of the output"
        )
    return parser
