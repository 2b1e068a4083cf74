"""A figure, how it is measured, and what the machine can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from medvq.device import computes_in_bfloat16, keep_freed_memory

Step = Callable[[], Any]
MEDVQ, MONAI, PEER, PLAIN = "medvq", "MONAI", "vector-quantize-pytorch", "plain loop"


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes
    ----------
    ratio : how many times as fast as ``other`` MedVQ is; where lower is better, how many times as
        much it takes.
    """

    figure: str
    against: str
    ratio: float
    must_reach: float | None
    lower_is_better: bool
    medvq: float
    other: float
    unit: str


def faster(figure: str, against: str, own: float, other: float, must: float | None) -> Row:
    """Return how many times as fast MedVQ is; both in seconds."""
    return Row(figure, against, other / own, must, False, 1e3 * own, 1e3 * other, "ms")


def within(figure: str, against: str, own: float, other: float, must: float | None) -> Row:
    """Return how many times as long as something else MedVQ takes; both in seconds."""
    return Row(figure, against, own / other, must, True, 1e3 * own, 1e3 * other, "ms")


def lighter(figure: str, against: str, own: float, other: float, must: float | None) -> Row:
    """Return how many times as much memory as something else MedVQ takes; both in MiB."""
    return Row(figure, against, own / other, must, True, own, other, "MiB")


class Bench:
    """Where and how long to measure; ``mixed``: whether training there is in mixed precision."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device, self.quick = torch.device(device), quick
        self.cuda = self.device.type == "cuda"
        self.mixed = computes_in_bfloat16(self.device)
        self.rounds = 3 if quick else 5

    def seconds(self, steps: dict[str, Step], rounds: int | None = None) -> dict[str, float]:
        """Return the median of each, all in turn; only MedVQ keeps freed memory, as in its stages.

        The first round warms up. The others' steps have glibc's own policy for freed memory.
        """
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(1 + (rounds or self.rounds)):
            for name, step in steps.items():
                keep_freed_memory(name.startswith(MEDVQ))
                if name.startswith(MEDVQ) and not self.cuda:
                    step()  # in training the memory is there from the step before
                self.wait()
                start = time.perf_counter()
                step()
                self.wait()
                if number:
                    taken[name].append(time.perf_counter() - start)
        return {name: statistics.median(values) for name, values in taken.items()}

    def wait(self) -> None:
        """Wait until the device has done its work."""
        if self.cuda:
            torch.cuda.synchronize()
