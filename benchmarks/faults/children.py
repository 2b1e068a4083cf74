"""Commands in forked processes, which have every library loaded already.

To import torch, MONAI and MLflow takes longer than a stage of the smallest set. The harness imports
them once, computes nothing itself and has no thread of its own, so that each command is a fork of
it: some hundredths of a second, and from ``main`` on the same code as ``python -m medvq``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import medvq
from medvq.code_hash import code_of
from medvq.stages import STAGES

_LIBRARIES = (
    "monai.networks.nets", "monai.optimizers", "torch._dynamo", "mlflow.tracking",
    "mlflow.store.db.utils", "mlflow.store.tracking.sqlalchemy_store", "alembic.command",
    "sqlalchemy.dialects.sqlite", "pyarrow.dataset", "matplotlib.pyplot",
)  # fmt: skip
_LONGEST = 300.0
"""Seconds after which a command counts as one that hangs."""
_FAREWELL = 10.0
"""Seconds that the processes of a command have to follow it."""


class Broken(Exception):
    """A promise that was not kept."""


class Skipped(Exception):
    """What this machine does not permit to try."""


def preload() -> None:
    """Import all that any stage imports."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(medvq.__path__, "medvq."):
        if module.name != "medvq.__main__":
            importlib.import_module(module.name)
    for stage in STAGES.values():
        code_of(stage.run.__module__)  # remembers the hash of every module
    assert threading.active_count() == 1, "a process with threads cannot be forked safely"


@dataclass(frozen=True)
class Ended:
    """What a command came to.

    Attributes
    ----------
    status : its exit status; the negative number of a signal that ended it.
    work : seconds that processors worked for it.
    peak : the most memory that it held, in MiB.
    """

    status: int
    out: str
    err: str
    seconds: float
    work: float
    peak: int

    @property
    def line(self) -> str:
        """The last line for people."""
        return next((line for line in reversed(self.err.splitlines()) if line.strip()), "")

    def need_success(self) -> None:
        """Raise where the command failed."""
        if self.status != 0:
            raise Broken(f"status {self.status}: {self.line[:300]}")
        self.need_no_traceback()

    def need_refusal(self) -> None:
        """Raise unless the command ended with one clear line."""
        self.need_no_traceback()
        if self.status != 2 or not self.line.startswith("medvq: "):
            raise Broken(f"status {self.status} instead of a clear line: {self.line[:300]}")

    def need_no_traceback(self) -> None:
        if "Traceback" in self.err:
            places = re.findall(r'File ".*?(\w+\.py)", (line \d+)', self.err)
            raise Broken(f"a traceback from {places[-1:]}: {self.line[:200]}")


class Child:
    """A command in a process, and in a process group, of its own.

    Parameters
    ----------
    call : returns the exit status.
    log : the files ``log.out`` and ``log.err`` take what it prints.
    """

    def __init__(
        self, call: Callable[[], int], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log, self.started = log, time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_serve(call, log, environment or {}))
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(self.pid, self.pid)  # in both processes: neither waits for the other

    def kill(self, number: int) -> None:
        """Send the command, and none of its processes, a signal."""
        os.kill(self.pid, number)

    def ends_within(self, seconds: float) -> bool:
        """Say whether the command ends within so many seconds."""
        until = time.monotonic() + seconds
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > until:
                return False
            time.sleep(0.005)
        return True

    def ends_within_work(self, seconds: float) -> bool:
        """Say whether the command ends before its processor has worked for so many seconds."""
        stat, ticks = Path(f"/proc/{self.pid}/stat"), seconds * os.sysconf("SC_CLK_TCK")
        while not self.ends_within(0.0):
            # Of the fields of proc_pid_stat(5) after the command's name the 12th to 15th: its own
            # time and that of its processes that have ended.
            if sum(map(int, stat.read_text().rpartition(")")[2].split()[11:15])) > ticks:
                return False
            time.sleep(0.005)
        return True

    def wait(self, longest: float = _LONGEST) -> Ended:
        """Return what the command came to.

        Raises
        ------
        Broken
            It hangs, or leaves processes behind.
        """
        hangs = not self.ends_within(longest)
        if hangs:
            os.killpg(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        seconds = time.monotonic() - self.started
        if hangs:
            raise Broken(f"hangs for more than {longest:g} s")
        self._need_nobody_left()
        out, err = (self.log.with_suffix(end).read_text(errors="replace") for end in _ENDS)
        work, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024
        return Ended(os.waitstatus_to_exitcode(status), out, err, seconds, work, peak)

    def _need_nobody_left(self) -> None:
        until = time.monotonic() + _FAREWELL
        while time.monotonic() < until:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.01)
        os.killpg(self.pid, signal.SIGKILL)
        raise Broken("left processes behind")


_ENDS = (".out", ".err")


def _serve(call: Callable[[], int], log: Path, environment: Mapping[str, str]) -> int:
    """Call in the child; return its exit status."""
    os.setpgid(0, 0)
    # As `python -m medvq` does until its command can be interrupted. A shell lets what it starts
    # in the background ignore an interruption, which would be inherited.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number, end in enumerate(_ENDS, 1):
        flags = os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_WRONLY
        os.dup2(os.open(log.with_suffix(end), flags, 0o644), number)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update({"MEDVQ_SUBJECT_KEY": "faults"} | dict(environment))
    status = 1
    try:
        status = call()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def fresh_process(arguments: Sequence[str]) -> Callable[[], int]:
    """Return a call that becomes ``python -m medvq``, start-up and imports included."""

    def call() -> int:
        os.execv(sys.executable, [sys.executable, "-m", "medvq", *arguments])  # noqa: S606  # this interpreter

    return call
