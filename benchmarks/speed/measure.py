"""A figure, how it is measured, and what the machine can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from medvq.device import computes_in_bfloat16, keep_freed_memory
from torch.utils.flop_counter import FlopCounterMode

Step = Callable[[], Any]
MEDVQ, MONAI, PEER, PLAIN = "medvq", "MONAI", "vector-quantize-pytorch", "plain loop"


@dataclass(frozen=True)
class Row:
    """One figure: ``ratio`` says how many times as fast as ``other`` MedVQ is or, where lower is
    better, how many times as much it takes.
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
    """How many times as fast; both in seconds."""
    return Row(figure, against, other / own, must, False, 1e3 * own, 1e3 * other, "ms")


def within(
    figure: str, against: str, own: float, other: float, must: float | None, unit: str = "ms"
) -> Row:
    """How many times what it is measured against; seconds, or already in ``unit``."""
    scale = 1e3 if unit == "ms" else 1.0
    return Row(figure, against, own / other, must, True, scale * own, scale * other, unit)


class Bench:
    """Where and how long to measure; ``mixed``: whether training there is in mixed precision."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device, self.quick = torch.device(device), quick
        self.cuda = self.device.type == "cuda"
        self.mixed = computes_in_bfloat16(self.device)
        self.rounds = 3 if quick else 5

    def seconds(self, steps: dict[str, Step], rounds: int | None = None) -> dict[str, float]:
        """The median of each, all in turn; only MedVQ keeps freed memory, as its stages do."""
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
        """Until the device has done what it was told."""
        if self.cuda:
            torch.cuda.synchronize()

    def operations_per_second(self, mixed: bool) -> float:
        """Of a product of large matrices, in bfloat16 or in float32."""
        kind = torch.bfloat16 if mixed else torch.float32
        side = 8192 if self.cuda else 1024
        a, b = (torch.randn(side, side, device=self.device, dtype=kind) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * side**3 / self.seconds({"product": lambda: torch.mm(a, b, out=out)})["product"]

    def bytes_per_second(self) -> float:
        """Of a copy in memory, read and written, of 256 MiB."""
        source = torch.zeros(1 << 26, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.seconds({"copy": lambda: target.copy_(source)})["copy"]


def operations(step: Step) -> int:
    """Floating-point operations of the matrix products and convolutions of ``step``."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def matrix_product(number: int, dim: int, size: int, device: torch.device) -> Step:
    """All vectors against all codes, into memory that is there."""
    vectors, codebook = (torch.randn(n, dim, device=device) for n in (number, size))
    out = torch.empty(number, size, device=device)
    return lambda: torch.mm(vectors, codebook.T, out=out)
