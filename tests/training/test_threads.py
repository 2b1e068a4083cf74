"""Threads of a training beside programs that begin and end, on a simulated machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from medvq.errors import Notice
from medvq.training import threads
from medvq.training.threads import TrainingThreads, busy_processors, free_threads

CPU = torch.device("cpu")


@given(st.integers(1, 256), st.floats(0, 256), st.floats(0, 256))
def test_there_is_a_thread_for_each_processor_that_is_free(
    processors: int, busy: float, more: float
) -> None:
    assert free_threads(processors, 0.0) == processors
    assert 1 <= free_threads(processors, busy + more) <= free_threads(processors, busy)
    if free_threads(processors, busy) > 1:
        # Together with what others run there is no thread too many, and no processor idle.
        assert abs(free_threads(processors, busy) + busy - processors) <= 0.5


def state(*times: tuple[int, ...]) -> str:
    """The kernel's text: user, nice, system, idle, waits for disks, ..., ten numbers each."""
    filled = [(*values, *[0] * (10 - len(values))) for values in times]
    lines = [f"cpu{n} {' '.join(map(str, values))}" for n, values in enumerate(filled)]
    return "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 7 0 0", ""])


def test_busy_is_what_is_neither_idle_nor_waits_nor_gives_way() -> None:
    before = state((5, 5, 5, 5), (0, 0, 0, 0), (0, 0, 0, 0), (9, 9, 9, 9, 9))
    after = state((25, 5, 10, 30), (0, 50, 0, 0), (0, 0, 0, 40, 10), (59, 9, 9, 9, 9))
    assert busy_processors(before, after, [0]) == pytest.approx((0.5, 0.5))
    assert busy_processors(before, after, [1]) == (0, 1)  # others that give way
    assert busy_processors(before, after, [2]) == (0, 0)  # idle, and waiting for a disk
    assert busy_processors(before, after, range(4)) == pytest.approx((1.5, 2.5))
    assert busy_processors(before, before, range(8)) == (0, 0)  # no time has passed


class Machine:
    """Four processors, of which others keep some busy and a training its threads.

    Attributes
    ----------
    others : processors that other programs keep busy.
    nice : processors that programs which give way keep busy, of those that are left.
    most : threads, above which steps take four times as long, whatever the kernel counts.
    """

    most = 4

    def __init__(self) -> None:
        self.others = self.nice = self.now = self.own = self.busy = self.nice_time = 0.0

    def sleep(self, seconds: float, own: float = 0.0) -> None:
        """Pass time in which the training uses ``own`` processors."""
        own = min(own, 4 - self.others)
        self.now += seconds
        self.own += seconds * own
        self.busy += seconds * self.others
        self.nice_time += seconds * min(self.nice, 4 - self.others - own)

    def train(self, seconds: float) -> int:
        """Pass time in which the training computes; return its threads."""
        number = torch.get_num_threads()
        self.sleep(seconds * (4 if number > self.most else 1), number)
        return number

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.own

    def state(self) -> str:
        """What the kernel would say, in hundredths of a second, all processors alike."""
        busy, nice = round(100 * (self.busy + self.own) / 4), round(100 * self.nice_time / 4)
        idle = round(100 * self.now) - busy - nice
        return state(*[(busy, nice, 0, idle)] * 4)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    simulated, before = Machine(), torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "_STATE", tmp_path)  # there is such a file on every system
    monkeypatch.setattr(threads, "_read_state", simulated.state)
    monkeypatch.setattr(threads, "time", simulated)
    torch.set_num_threads(4)
    yield simulated
    torch.set_num_threads(before)


def train_on(machine: Machine, training: TrainingThreads, seconds: int) -> list[int]:
    """Return the threads of each second of a training of one step a second."""
    used = []
    for _ in range(seconds):
        used.append(machine.train(1.0))
        training.adapt()
    return used


def test_an_idle_machine_is_used_whole(machine: Machine) -> None:
    with TrainingThreads(CPU) as training:
        assert train_on(machine, training, 60) == [4] * 60


def test_counts_of_another_form_say_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.others = 4.0
    monkeypatch.setattr(threads, "_read_state", lambda: "cpu0 1 2 3\ncpu1 a b c\n")
    with TrainingThreads(CPU) as training:
        assert train_on(machine, training, 30) == [4] * 30


def test_threads_are_left_to_others_that_begin_and_taken_when_they_end(machine: Machine) -> None:
    with TrainingThreads(CPU) as training:
        train_on(machine, training, 15)
        machine.others = 3.0
        with pytest.warns(Notice, match="in 1 thread, since other .* now; OMP_NUM_THREADS=4"):
            used = train_on(machine, training, 30)
        # The window in which they begin is half theirs; the next is all theirs.
        assert used[-10:] == [1] * 10
        assert used == sorted(used, reverse=True)
        machine.others = 1.0
        with pytest.warns(Notice, match="in 3 threads, since processors are free again"):
            used = train_on(machine, training, 60)
        assert used[:20] == [1] * 20  # others that pause are waited for
        assert used[-10:] == [3] * 10
    assert torch.get_num_threads() == 4


def test_others_that_are_there_at_first_are_told_from_the_training(machine: Machine) -> None:
    machine.others = 2.0
    with pytest.warns(Notice, match="in 2 threads"), TrainingThreads(CPU) as training:
        assert train_on(machine, training, 60) == [2] * 60


def test_processors_of_programs_that_give_way_are_left_to_them_and_tried(machine: Machine) -> None:
    machine.nice = 2.0
    with pytest.warns(Notice, match="in 2 threads"), TrainingThreads(CPU) as training:
        used = train_on(machine, training, 100)
    assert used == [2] * 30 + [4] * 70  # they slow nothing


def test_threads_in_which_steps_take_longer_are_given_up(machine: Machine) -> None:
    machine.nice, machine.most = 2.0, 2
    with TrainingThreads(CPU) as training:
        with pytest.warns(Notice, match="in 2 threads, since steps took longer in more"):
            used = train_on(machine, training, 400)
        # Each try costs one look of three slow steps, and is waited for twice as long as the last.
        assert [n for n in range(1, len(used)) if used[n] > used[n - 1]] == [30, 93, 216]
        assert used.count(4) == 9
        machine.nice, machine.most = 0.0, 4
        with pytest.warns(Notice, match="free again"):
            assert train_on(machine, training, 400)[-100:] == [4] * 100


def test_a_resumed_run_begins_with_the_threads_it_had(machine: Machine) -> None:
    with TrainingThreads(CPU) as training:
        training.resume(2)
        with pytest.warns(Notice, match="free again"):
            used = train_on(machine, training, 60)
        assert used[:25] == [2] * 25
        assert used[-20:] == [4] * 20


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_the_user_says_counts_and_a_gpu_trains_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    if device == "cpu":
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
    machine.others = 4.0
    with TrainingThreads(torch.device(device)) as training:
        if device == "cpu":
            training.resume(1)
        assert train_on(machine, training, 30) == [4] * 30
