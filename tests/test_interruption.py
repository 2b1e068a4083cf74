"""Signals at any moment: a status, one line, never a traceback."""

from __future__ import annotations

import errno
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from medvq.cli import status
from medvq.interruption import INTERRUPTED

Captured = pytest.CaptureFixture[str]
ALL = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@pytest.fixture(autouse=True)
def _without_nohup() -> Iterator[None]:
    """Have SIGHUP arrive where the tests themselves were started under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def interrupted_by_a_library() -> int:
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt as error:
        raise RuntimeError("a callback failed") from error
    return 0


@ALL
def test_a_command_that_is_interrupted_ends_in_one_line(
    number: signal.Signals, tmp_path: Path, capsys: Captured
) -> None:
    before = signal.getsignal(number)

    def interrupted() -> int:
        signal.raise_signal(number)
        return 0

    assert status(interrupted, tmp_path) == 128 + number
    line = "medvq: interrupted; run the same command again: what was finished is kept\n"
    assert capsys.readouterr().err == line
    assert signal.getsignal(number) is before


def test_an_interruption_that_a_library_makes_an_error_of_is_one(
    tmp_path: Path, capsys: Captured
) -> None:
    assert status(interrupted_by_a_library, tmp_path) == 143
    assert capsys.readouterr().err == f"medvq: {INTERRUPTED}\n"


class Deleted:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def interrupted_in_a_finaliser() -> int:
    Deleted()
    time.sleep(60)
    return 0


def test_an_interruption_that_is_lost_in_a_finaliser_comes_again(
    tmp_path: Path, capsys: Captured
) -> None:
    assert status(interrupted_in_a_finaliser, tmp_path) == 143
    assert capsys.readouterr().err == f"medvq: {INTERRUPTED}\n"


def test_an_interruption_while_a_dataclass_is_made_has_its_own_status(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(
        "from pathlib import Path\n"
        "from medvq.cli import status\n"
        "made = lambda: exec('import signal; signal.raise_signal(signal.SIGTERM)')\n"
        "raise SystemExit(status(made, Path('.')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (143, f"medvq: {INTERRUPTED}\n")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@ALL
@pytest.mark.parametrize("once_seconds", [-1, 60])
def test_a_second_signal_ends_a_command_that_hangs_and_an_echo_of_the_first_does_not(
    number: signal.Signals, once_seconds: int
) -> None:
    script = f"""
import signal, time
from pathlib import Path
import medvq.interruption
from medvq.cli import status
medvq.interruption._ONCE_SECONDS = {once_seconds}
def command():
    try:
        signal.raise_signal({int(number)})
    finally:
        signal.raise_signal({int(number)})
        print('went on')
raise SystemExit(status(command, Path('.')))
"""
    done = run(script)
    assert done.returncode == 128 + number
    assert done.stderr == f"medvq: {INTERRUPTED}\n"
    assert done.stdout == ("went on\n" if once_seconds > 0 else "")


def test_an_interruption_while_modules_are_imported_ends_the_process_in_silence() -> None:
    script = """
import builtins, runpy, signal, sys
usual = builtins.__import__
def interrupted(name, *arguments, **more):
    if name == 'medvq.cli':
        signal.raise_signal(signal.SIGINT)
    return usual(name, *arguments, **more)
builtins.__import__ = interrupted
runpy.run_module('medvq.__main__', run_name='__main__')
"""
    done = run(script)
    assert done.returncode == -signal.SIGINT
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("buffered", [True, False])
def test_a_command_whose_output_nobody_reads_ends_in_silence(
    tmp_path: Path, stream: str, buffered: bool
) -> None:
    read, write = os.pipe()
    os.close(read)
    program = (
        "import sys; from pathlib import Path; from medvq.cli import status\n"
        f"say = lambda: print('a line', file=sys.{stream}) or 0\n"
        "sys.exit(status(say, Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"},
        stdout=write if stream == "stdout" else subprocess.PIPE,
        stderr=write if stream == "stderr" else subprocess.PIPE,
        timeout=120,
    )
    os.close(write)
    assert done.returncode == 128 + signal.SIGPIPE
    assert not done.stdout
    assert not done.stderr


def test_a_pipe_that_breaks_elsewhere_is_no_closed_output(tmp_path: Path) -> None:
    def broken() -> int:
        raise BrokenPipeError(errno.EPIPE, "a worker is gone")

    with pytest.raises(BrokenPipeError, match="a worker is gone"):
        status(broken, tmp_path)


def test_a_terminal_that_is_closed_interrupts_and_is_written_to_no_more(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from medvq.cli import status
def command():
    try:
        print('started', flush=True)
        time.sleep(60)
    finally:
        print('progress', flush=True)
        Path(r'{tmp_path}/checkpoint').touch()
number = status(command, Path('.'))
Path(r'{tmp_path}/status').write_text(str(number))
"""
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", program])
    assert b"started" in os.read(terminal, 100)
    os.close(terminal)
    _, ended = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(ended) == 0
    assert (tmp_path / "checkpoint").exists()
    assert (tmp_path / "status").read_text() == str(128 + signal.SIGHUP)


def test_what_nohup_has_a_command_ignore_it_ignores() -> None:
    done = run("""
import signal
from pathlib import Path
from medvq.cli import status
signal.signal(signal.SIGHUP, signal.SIG_IGN)
raise SystemExit(status(lambda: signal.raise_signal(signal.SIGHUP) or 0, Path('.')))
""")
    assert (done.returncode, done.stderr) == (0, "")


PRINTS = (
    "import os, sys; from pathlib import Path; from medvq.cli import main, status\n"
    "say = lambda: print('a line', file=sys.{}) or 0\n"
    "sys.exit(status(say, Path('.')))"
)


def test_an_output_that_is_full_is_no_full_disk_of_artifacts() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", PRINTS.format("stdout")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr == (
            "medvq: cannot write to standard output (no space left on device); lead it elsewhere, "
            "then run again: what was finished is kept\n"
        )
        command = [sys.executable, "-c", PRINTS.format("stderr")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")


def test_no_file_gets_the_number_of_an_output_that_is_closed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from medvq.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        f"file = open(r'{tmp_path}/file', 'w'); os.write(2, b'a warning')"
    )
    shell = f'exec "{sys.executable}" -c "$0" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell, code], timeout=60).returncode == 0
    assert (tmp_path / "file").read_bytes() == b""
