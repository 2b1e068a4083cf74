"""Processes that crash, hang, are killed, talk too much; and order and memory all the same."""

import itertools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from factories import misbehaving
from medvq.images import workers
from medvq.images.workers import WorkerFailure, kept_processes, map_in_processes

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_the_order_of_the_items(processes: int) -> None:
    found = map_in_processes(misbehaving.square, range(50), processes=processes, timeout=60)
    assert list(found) == [n * n for n in range(50)]


def test_nothing_is_nothing() -> None:
    assert list(map_in_processes(misbehaving.square, [], processes=2, timeout=60)) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_only_the_item_that_did_it_is_lost(processes: int) -> None:
    found = list(map_in_processes(misbehaving.perilous, range(20), processes=processes, timeout=6))
    lost = {n: result.reason for n, result in enumerate(found) if isinstance(result, WorkerFailure)}
    assert lost == {
        3: "the decoder crashed (SIGSEGV)",
        5: "the decoder crashed (SIGKILL)",
        7: "reading it took longer than 6 seconds",
        9: "the decoder crashed (exit status 3)",
        11: "it needs more memory than there is",
    }
    assert [r for r in found if not isinstance(r, WorkerFailure)] == [
        n * n for n in range(20) if n not in lost
    ]


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "memory_limit", lambda _: 600 * 2**20)
    items = [3, 4, 5, 900, 901, 902, 3, 4, 5]
    found = list(map_in_processes(misbehaving.hungry, items, processes=1, timeout=60))
    failure = WorkerFailure("it needs more memory than there is", out_of_memory=True)
    assert found == [3, 4, 5, *[failure] * 3, 3, 4, 5]


def test_each_process_gets_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_group_limits", lambda: iter([8 * 2**30, 2**62]))
    assert workers.memory_limit(1) == int(0.8 * 8 * 2**30)
    assert workers.memory_limit(4) == int(0.8 * 8 * 2**30) // 4
    assert workers.memory_limit(64) == 3 * 2**29


def test_an_item_has_a_second_chance(tmp_path: Path) -> None:
    items = [str(tmp_path / name) for name in "abc"]
    found = map_in_processes(misbehaving.in_need_of_luck, items, processes=2, timeout=60)
    assert list(found) == ["read"] * 3


def test_a_bug_stays_a_bug() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_processes(misbehaving.buggy, [1, 0, 1], processes=2, timeout=60))


def test_what_decoders_print_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    found = list(map_in_processes(misbehaving.talkative, range(5), processes=2, timeout=60))
    assert [len(result) for result in found if isinstance(result, bytes)] == [3_000_000] * 5
    assert "CANARY" not in "".join(capfd.readouterr())


def test_items_are_taken_as_they_are_needed() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield number

    results = map_in_processes(misbehaving.square, endless(), processes=2, timeout=60)
    assert list(itertools.islice(results, 500)) == [n * n for n in range(500)]
    assert taken <= 500 + 2 * workers._WINDOW + 2 * workers._AHEAD
    results.close()


def test_no_process_outlives_the_caller() -> None:
    results = map_in_processes(misbehaving.who, range(100), processes=2, timeout=60)
    seen = {result for result in itertools.islice(results, 50) if isinstance(result, int)}
    assert 1 <= len(seen) <= 2
    results.close()
    for pid in seen:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool]) -> bool:
    """Say whether a condition comes true; the limit is for a machine under load."""
    limit = time.monotonic() + 60
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return condition()


@contextmanager
def started_script(folder: Path, function: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that maps a function of ``misbehaving`` over 3 names of files; end it."""
    script = folder / "script.py"
    script.write_text(
        "from factories import misbehaving\n"
        "from medvq.images.workers import map_in_processes\n"
        f"items = [{str(folder)!r} + f'/{{n}}' for n in range(3)]\n"
        f"list(map_in_processes(misbehaving.{function}, items, processes=2, timeout=600))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)])}
    process = subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.PIPE)
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("function", ["hang_in_c", "hang_with_the_lock"])
def test_no_process_outlives_a_caller_that_is_killed(tmp_path: Path, function: str) -> None:
    with started_script(tmp_path, function) as caller:
        files = [tmp_path / "0", tmp_path / "1"]
        assert wait_for(lambda: all(file.exists() and file.read_text() for file in files))
        pids = [int(file.read_text()) for file in files]
        assert all(map(is_running, pids))
        caller.kill()
    assert wait_for(lambda: not any(map(is_running, pids)))


def test_processes_serve_the_next_call_and_end_with_the_block() -> None:
    with kept_processes():
        first = set(map_in_processes(misbehaving.who, range(20), processes=2, timeout=60))
        squares = list(map_in_processes(misbehaving.square, range(20), processes=2, timeout=60))
        again = set(map_in_processes(misbehaving.who, range(20), processes=1, timeout=60))
        assert again < first or again == first
        assert all(isinstance(pid, int) and is_running(pid) for pid in first)
    assert squares == [n * n for n in range(20)]
    assert not any(isinstance(pid, int) and is_running(pid) for pid in first)


def test_a_kept_process_has_the_memory_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with kept_processes():
        for megabytes, count in ((600, 0), (4000, 1), (600, 0)):
            monkeypatch.setattr(workers, "memory_limit", lambda _, m=megabytes: m * 2**20)
            found = list(map_in_processes(misbehaving.hungry, [900], processes=1, timeout=60))
            assert found.count(900) == count


def test_few_file_descriptors_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 24, usual[1]))
    try:
        found = list(map_in_processes(misbehaving.square, range(40), processes=64, timeout=60))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    assert found == [n * n for n in range(40)]


def test_a_key_of_the_terminal_reaches_the_caller_alone(tmp_path: Path) -> None:
    """The terminal sends signals to the group of the caller, also while processes start."""
    with started_script(tmp_path, "hang_in_c") as caller:
        children = Path(f"/proc/{caller.pid}/task/{caller.pid}/children")
        assert wait_for(lambda: len(children.read_text().split()) == 2)
        pids = [int(pid) for pid in children.read_text().split()]
        # A process changes its group a moment after it is there.
        assert wait_for(lambda: os.getpgid(caller.pid) not in map(os.getpgid, pids))
    assert wait_for(lambda: not any(map(is_running, pids)))


def test_the_kernel_ends_a_reading_process_first() -> None:
    (score,) = map_in_processes(misbehaving.oom_score, [0], processes=1, timeout=60)
    assert score == 1000


def test_a_function_that_cannot_be_loaded_is_told() -> None:
    with pytest.raises(RuntimeError, match="could not start"):
        list(map_in_processes(Missing(), [1], processes=1, timeout=60))


class Missing:
    """Pickles as a function of a module that is not there."""

    def __reduce__(self) -> tuple[object, ...]:
        return (__import__, ("medvq_is_not_here",))

    def __call__(self, item: int) -> int:
        return item


def test_a_script_without_a_guard_does_not_run_twice(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from factories import misbehaving\n"
        "from medvq.images.workers import map_in_processes\n"
        "print(list(map_in_processes(misbehaving.square, range(3), processes=2, timeout=60)))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)])}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "[0, 1, 4]\n"
    assert done.stderr == ""
