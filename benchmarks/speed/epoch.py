"""A whole epoch, with the data path."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from medvq.device import keep_freed_memory
from medvq.method.loss import PretrainingLoss
from medvq.training.batches import ViewBatches, prefetch

from benchmarks.speed.cache import SMALL
from benchmarks.speed.measure import MEDVQ, Bench, Row, Step, within


def epochs(bench: Bench, number: int) -> dict[str, Step]:
    """A whole epoch with the data path, and the same steps on a batch that is there."""
    side = 64
    images = np.random.default_rng(0).integers(0, 256, (number, side, side), np.uint8)
    config = SMALL.model_copy(update={"batch_size": 64})
    batches = ViewBatches(
        images, *[np.arange(number)] * 2, images[None], config, seed=0, device=bench.device
    )
    objective = PretrainingLoss(config, 1.0).to(bench.device)
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)

    def train(batch: Any) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.mixed):
            loss = objective(**batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    ready = next(iter(prefetch(batches, bench.device)))

    def epoch() -> None:
        for batch in prefetch(batches, bench.device):
            train(batch)

    def steps_alone() -> None:
        for _ in range(len(batches)):
            train(ready)

    return {f"{MEDVQ} epoch": epoch, f"{MEDVQ} steps": steps_alone}


def epoch_seconds(bench: Bench, number: int) -> float:
    """Of an epoch of ``number`` images."""
    epoch = next(iter(epochs(bench, number).values()))
    keep_freed_memory()
    bench.wait()
    start = time.perf_counter()
    epoch()
    bench.wait()
    return time.perf_counter() - start


def measure_loader(bench: Bench) -> list[Row]:
    """What an epoch takes beyond its steps."""
    number = 320 if bench.quick else 640
    epoch, steps = bench.seconds(epochs(bench, number)).values()
    figure = f"epoch with the data path, {number} images, 64 px, batch 64"
    return [within(figure, "its steps on one batch", epoch, steps, 1.05)]
