"""Processes that crash, hang, are killed, talk too much; and order and memory all the same."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import misbehaving
from medvq.images import workers
from medvq.images.workers import WorkerFailure, map_in_processes


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_the_order_of_the_items(processes: int) -> None:
    found = map_in_processes(misbehaving.square, range(50), processes=processes, timeout=60)
    assert list(found) == [n * n for n in range(50)]


def test_nothing_is_nothing() -> None:
    assert list(map_in_processes(misbehaving.square, [], processes=2, timeout=60)) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_only_the_item_that_did_it_is_lost(processes: int) -> None:
    found = list(map_in_processes(misbehaving.perilous, range(20), processes=processes, timeout=2))
    lost = {n: result.reason for n, result in enumerate(found) if isinstance(result, WorkerFailure)}
    assert lost == {
        3: "the decoder crashed (SIGSEGV)",
        5: "the decoder crashed (SIGKILL)",
        7: "reading it took longer than 2 seconds",
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
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
    }
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "[0, 1, 4]\n"
    assert done.stderr == ""
