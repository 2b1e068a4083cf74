"""Commands and nothing else: ``medvq STAGE --config kermany`` or ``python -m medvq STAGE``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from medvq import __version__
from medvq.config_file import load_config
from medvq.distributed import (
    PEER_LOST,
    await_peer_end,
    check_environment,
    is_lost_peer,
    process_group,
    rank,
    turn_to_tell,
)
from medvq.errors import Notice, UserError, out_of_memory, refused_by_disk
from medvq.interruption import INTERRUPTED, Interruption
from medvq.modes import artifact_modes
from medvq.outputs import discard_refused, discard_unread, open_closed
from medvq.stages import COMMANDS, STAGES
from medvq.stages.command import add_artifacts_option, add_json_option, file_path
from medvq.stages.stage import Ensure, RunOptions

if TYPE_CHECKING:
    from medvq.flow import StageResult

# What the shell shows of a program whose output nobody reads any more.
_UNREAD = 128 + signal.SIGPIPE
# A setting among others: spaces within quotes or brackets are a part of it.
_SETTING = re.compile(r"""(?:"[^"]*"|'[^']*'|\[[^]]*\]|\S)+""")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 for what the user can mend, 130, 141 or 143 if it was ended."""
    # Threads that spin while they wait starve each other on small machines: a passive wait trained
    # a small convolutional network four times as fast on two shared cores. Set before torch is
    # imported, and only where the user has not said otherwise.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    open_closed()
    # Names of files may hold bytes that are no text, and a terminal may know ASCII alone.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parsed = _parser().parse_args(arguments)
    if not _has_folder():
        print("medvq: the folder it was started in is gone; go to another (cd)", file=sys.stderr)
        return 2
    # Absolute, since pandas would take a relative path such as "file:x/a.csv" for an address.
    if hasattr(parsed, "artifacts"):
        parsed.artifacts = parsed.artifacts.absolute()

    def run() -> int:
        check_environment()
        if parsed.command is not None:
            with artifact_modes():
                return int(parsed.command.run(parsed))
        with process_group(parsed.device):
            return _run(parsed)

    if parsed.command is not None:
        return status(run, *parsed.command.writes(parsed))
    return status(run, parsed.artifacts, parsed.data_root)


def _has_folder() -> bool:
    """Say whether the folder that the command was started in is still there."""
    try:
        return Path.cwd().is_dir()
    except FileNotFoundError:
        return False


def status(command: Callable[[], int], *folders: Path) -> int:
    """Return the exit status of ``command``; errors that a user can mend are shown in one line.

    Parameters
    ----------
    folders : that the command writes to, that of artifacts first.
    """
    interruption = Interruption()
    try:
        with interruption, _notices(), _progress_bars_end():
            _check_folders(folders)
            number = command()
            print(end="", flush=True)  # errors of the output are not to come when Python ends
            return number
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        return _interrupted(interruption)
    except Exception as error:
        if interruption.received is not None:  # a library has made an error of its own of it
            return _interrupted(interruption)
        if is_lost_peer(error):
            await_peer_end()
            return PEER_LOST
        if isinstance(error, OSError) and discard_unread():
            return _UNREAD
        refusal = _refusal(error, *folders)
        if refusal is None:
            raise
        message = refusal
    _tell(message)
    return 2


def _refusal(error: Exception, *folders: Path) -> str | None:
    """Return the line for an error of the surroundings, None for one of ours."""
    if isinstance(error, OSError) and (output := discard_refused()):
        mend = "lead it elsewhere, then run again: what was finished is kept"
        return f"cannot write to {output}; {mend}"
    return out_of_memory(error) or refused_by_disk(error, *folders)


def _tell(message: str) -> None:
    """Say in one line why the command ends: what several processes meet, one says."""
    with turn_to_tell() as first, contextlib.suppress(OSError):  # where nobody can read it
        if first:
            print(f"medvq: {' '.join(message.split())}", file=sys.stderr, flush=True)
    discard_refused()


def _check_folders(folders: Sequence[Path]) -> None:
    """Refuse folders to write to that are a file or a link that leads nowhere, or lie below one."""
    for folder in folders:
        places = (folder, *folder.absolute().parents)
        existing = next(path for path in places if os.path.lexists(path))
        if not existing.is_dir():
            raise UserError(
                f"{existing} is no folder, and is to be written to: choose another (OUT, "
                "ARTIFACTS, DATA_ROOT)"
            )


def _interrupted(interruption: Interruption) -> int:
    _tell(INTERRUPTED)
    # An interruption that passes ``exec`` of a text, by which dataclasses are made, has python -m
    # end by SIGINT whatever handled it; another text takes that back.
    exec("")  # noqa: S102  # no code at all
    return interruption.status


@contextlib.contextmanager
def _notices() -> Iterator[None]:
    """Show each :class:`Notice` as one line, once; other warnings as usual."""
    shown: set[str] = set()
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
        elif str(message) not in shown:
            shown.add(str(message))
            print(f"medvq: {message}", file=sys.stderr)

    # Not catch_warnings: it would forget the filters of modules that are first imported within.
    warnings.simplefilter("always", Notice)
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


@contextlib.contextmanager
def _progress_bars_end() -> Iterator[None]:
    """End progress bars with the block; one that an error has left would be drawn once more."""
    try:
        yield
    finally:
        for bar in list(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())):
            bar.close()


def _run(parsed: argparse.Namespace) -> int:
    from medvq.flow import as_line, run

    config = load_config(parsed.config, parsed.set)
    options = RunOptions(
        data_root=parsed.data_root,
        data_mirror=parsed.data_mirror,
        artifacts=parsed.artifacts,
        device=parsed.device,
        force=parsed.force,
        accept_code=parsed.accept_code,
        probe=parsed.probe,
        overrides=tuple(parsed.set),
    )
    result = run(parsed.stage, config, options)
    if rank() > 0:
        return 0
    record = result.artifact.record
    state = "up to date" if result.up_to_date else f"{result.seconds:.0f} s"
    print(
        f"{record.stage} of {record.dataset}: {state}", *result.table(), sep="\n", file=sys.stderr
    )
    page = _page(result)
    if parsed.json:
        if page is not None:
            print(page, file=sys.stderr)
        print(as_line(result))
    else:
        print(page or result.artifact.folder.absolute())
    return 0


def _page(result: StageResult) -> Path | None:
    """Return the page for people of a stage that has one; the result stands without it, too."""
    if result.stage.page is None:
        return None
    try:
        return result.stage.page(result.artifact).absolute()
    except Exception as error:
        folder = result.artifact.folder
        reason = error if isinstance(error, UserError) else _refusal(error, folder.parents[2])
        if reason is None:
            raise
        warnings.warn(Notice(f"there is no report: {reason}"), stacklevel=2)
        return None


def _ensurer(options: RunOptions) -> Ensure:
    from medvq.flow import ensurer

    return ensurer(options)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"medvq: {message}; '{self.prog} --help' shows what there is\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="medvq",
        description="Features from unlabelled medical images that need few labels. "
        "Each stage runs the stages before it where they are not up to date.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for stage in STAGES.values():
        names = ", ".join(read.name for read in stage.reads)
        reads = f" Reads the artifacts of: {names}." if names else ""
        command = commands.add_parser(
            stage.name, help=stage.help, description=f"{_sentence(stage.help)}{reads}"
        )
        add_options(command)
        if stage.prepare:
            command.add_argument(
                "--probe",
                type=file_path,
                help="the artifact of a fitted probe to judge, e.g. artifacts/kermany/probe/latest",
            )
        command.add_argument(
            "--force", action="store_true", help="run this stage although it is up to date"
        )
        add_json_option(command)
        command.set_defaults(probe=None, command=None)
    for beside in COMMANDS.values():
        command = commands.add_parser(
            beside.name, help=beside.help, description=_sentence(beside.help)
        )
        beside.add_options(command)
        command.set_defaults(command=beside, ensurer=_ensurer)
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options that stages and benchmarks share: configuration, data, artifacts, device."""
    command.add_argument(
        "--config",
        default=os.environ.get("DATASET") or "kermany",
        help="the name of a shipped configuration or a path to a yaml file (default: %(default)s)",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value of the configuration, e.g. pretrain.epochs=3; repeatable",
    )
    command.add_argument(
        "--settings",
        action="extend",
        dest="set",
        type=_SETTING.findall,
        metavar='"KEY=VALUE ..."',
        help="several of them, separated by spaces; a value with spaces stands in quotes",
    )
    command.add_argument(
        "--data-root",
        type=file_path,
        default=os.environ.get("DATA_ROOT") or "data",
        help="folder of data sets, looked in first (default: %(default)s)",
    )
    command.add_argument(
        "--data-mirror",
        default=os.environ.get("DATA_MIRROR") or None,
        help="folder of data sets, read in place, or an address to download from, "
        "where DATA_ROOT has none",
    )
    add_artifacts_option(command)
    command.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )
    command.add_argument(
        "--accept-code",
        action="store_true",
        default=os.environ.get("ACCEPT_CODE") == "1",
        help="use artifacts that other code made, where code is the only difference",
    )
