"""The training loop: epochs, validation, early stopping, checkpoints and bit-identical resume.

An epoch ends in this order: validation, the weights of the best epoch, the history, the checkpoint,
the report. A run that is killed at any point continues from its last checkpoint and ends with the
same bits, since everything random comes from (seed, epoch).
"""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pandas as pd
import torch
from monai.optimizers import WarmupCosineSchedule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from medvq.config import TrainingConfig
from medvq.device import computes_in_bfloat16
from medvq.errors import UserError
from medvq.method.collectives import all_reduce_sum, rank, world_size
from medvq.training.batches import epoch_seed
from medvq.training.divergence import check_divergence, check_finite

CHECKPOINT, HISTORY = "checkpoint.pt", "history.csv"
# Where the configuration sets no epochs: eighteen, as for the default data set, and for a small set
# as many as make so many steps, about what the default data set takes.
_EPOCHS, _FEWEST_STEPS = 18, 600
_STATE = ("objective", "optimizer", "schedule")  # attributes that a checkpoint holds
_STEPS_UNCHECKED = 50  # on a GPU between looks at the loss, since each waits for the device


def epoch_count(config: TrainingConfig, batches: int) -> int:
    """Return the number of epochs, of so many batches, that a training has at most."""
    return config.epochs or max(_EPOCHS, -(-_FEWEST_STEPS // batches))


def patience(config: TrainingConfig, batches: int) -> int:
    """Return after how many epochs without a better validation loss a training stops.

    Where the configuration sets no epochs, at least half of them.
    """
    half = 0 if config.epochs else epoch_count(config, batches) // 2
    return max(config.patience, half)


@dataclass(frozen=True)
class Run:
    """The surroundings of one training run."""

    folder: Path  # of weights, history and checkpoint; a checkpoint there is resumed from
    seed: int
    device: torch.device
    report: Callable[[dict[str, float], int], None]  # takes the metrics of an epoch and its number


class Batches(Protocol):
    """The batches of an epoch; where there are several processes, each makes its own part."""

    epoch: int

    @property
    def batch_size(self) -> int:
        """Images in a batch, of all processes together."""

    def __len__(self) -> int: ...


class TrainingLoop(ABC):
    """One training run; a subclass says what is trained, on what, and how it is judged.

    The output of ``objective`` has the scalar ``loss`` and the other ``terms``; ``unused`` says
    whether some of its weights have no gradient. ``history`` has one row per epoch.
    """

    section: ClassVar[str]  # of the configuration, for messages
    activity: ClassVar[str]  # for the progress bar
    terms: ClassVar[tuple[str, ...]]  # scalars that are averaged over an epoch, ``loss`` first

    def __init__(
        self,
        run: Run,
        config: TrainingConfig,
        objective: nn.Module,
        batches: Batches,
        *,
        unused: bool,
    ) -> None:
        self.run, self.training, self.batches, self.objective = run, config, batches, objective
        rate, decay = config.learning_rate, config.weight_decay
        self.optimizer = torch.optim.AdamW(
            objective.parameters(), lr=rate, weight_decay=decay, fused=True
        )
        self.epochs = epoch_count(config, len(batches))
        steps = len(batches) * self.epochs
        self.schedule = WarmupCosineSchedule(
            self.optimizer, warmup_steps=min(config.warmup_steps, steps // 4), t_total=steps
        )
        self.autocast = config.amp == "bfloat16" or (
            config.amp == "auto" and computes_in_bfloat16(run.device)
        )
        self.forward = _parallel(objective, unused) if world_size() > 1 else objective
        self.history: list[dict[str, float]] = []

    @abstractmethod
    def load(self) -> Iterable[Mapping[str, object]]:
        """Yield the batches of an epoch on the device, each the objective's arguments."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Return the columns of an epoch's row on the validation images, ``val_loss`` first."""

    @abstractmethod
    def save_best(self) -> None:
        """Write the weights, and whatever shows them, after the best epoch so far."""

    def begin_epoch(self) -> None:  # noqa: B027
        """Prepare for an epoch's calls of :meth:`count`."""

    def count(self, out: Any) -> None:  # noqa: B027
        """Take the objective's output of each training batch."""

    def check_epoch(self, epoch: int) -> None:  # noqa: B027
        """Raise a :class:`UserError` where an epoch's training failed in a way of its own."""

    def fit(self) -> None:
        """Train, from where an interrupted run in the same folder stopped."""
        self._resume()
        images = len(self.batches) * self.batches.batch_size
        most = patience(self.training, len(self.batches))
        with tqdm(
            total=self.epochs * images,
            initial=len(self.history) * images,
            desc=self.activity,
            unit=" images",
            mininterval=2.0,
            smoothing=0.05,
            disable=rank() > 0,
        ) as progress:
            for epoch in range(len(self.history) + 1, self.epochs + 1):
                if self.history and len(self.history) - self.best["epoch"] >= most:
                    break
                self._end_epoch(epoch, *self._train(epoch, progress))

    @property
    def best(self) -> dict[str, float]:
        """The row of the epoch with the least validation loss, the first of equal ones."""
        return min(self.history, key=lambda row: row["val_loss"])

    @property
    def _rate(self) -> str:
        """The learning rate as a user writes it."""
        return f"{self.section}.learning_rate={self.training.learning_rate:g}"

    def _train(self, epoch: int, progress: tqdm[Any]) -> tuple[dict[str, float], float]:
        """Train for an epoch; return the mean of each term, and images per second."""
        self.batches.epoch = epoch
        # Restarted codes and dropout draw from the global generator.
        torch.manual_seed(epoch_seed(self.run.seed + 1, epoch))
        self.begin_epoch()
        self.objective.train()
        sums = torch.zeros(len(self.terms), dtype=torch.float64, device=self.run.device)
        started = time.perf_counter()
        for number, batch in enumerate(self.load(), 1 + (epoch - 1) * len(self.batches)):
            with torch.autocast(self.run.device.type, torch.bfloat16, enabled=self.autocast):
                out = self.forward(**batch)
            if self.run.device.type == "cpu" or number % _STEPS_UNCHECKED == 0:
                check_finite(out.loss.item(), epoch, self._rate)
            self.optimizer.zero_grad(set_to_none=True)
            out.loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.count(out)
            # Added up on the device, since to look at a value is to wait for it.
            losses = torch.stack([getattr(out, name).detach() for name in self.terms]).double()
            if number == 1:
                self.first_losses = losses
            sums += losses
            progress.update(self.batches.batch_size)
        seconds = time.perf_counter() - started
        images = len(self.batches) * self.batches.batch_size
        return self._mean(sums / len(self.batches)), images / seconds

    def _end_epoch(self, epoch: int, trained: dict[str, float], speed: float) -> None:
        validation = self.validate()
        check_finite(validation["val_loss"], epoch, self._rate)
        row = {"epoch": float(epoch)} | trained
        before = self.history or [{"epoch": 0.0} | self._mean(self.first_losses)]
        check_divergence(row, before, self.terms[1:], self._rate)
        self.check_epoch(epoch)
        rate = self.optimizer.param_groups[0]["lr"]
        row |= validation | {"learning_rate": rate, "images_per_second": speed}
        best = self.best["val_loss"] if self.history else math.inf
        self.history.append(row)
        if rank() > 0:
            return
        if row["val_loss"] < best:
            self.save_best()
        pd.DataFrame(self.history).to_csv(self.run.folder / HISTORY, index=False)
        self._save_checkpoint()
        self.run.report({name: v for name, v in row.items() if name != "epoch"}, epoch)

    def _mean(self, losses: Tensor) -> dict[str, float]:
        """Return each term's mean over the processes; ``losses`` are those of this one."""
        means = (all_reduce_sum(losses) / world_size()).tolist()
        return dict(zip(self.terms, means, strict=True))

    def _save_checkpoint(self) -> None:
        """Write aside and rename, so that a killed run leaves a whole checkpoint."""
        state = {name: getattr(self, name).state_dict() for name in _STATE}
        aside = self.run.folder / f".{CHECKPOINT}"
        torch.save(state | {"history": self.history}, aside)
        aside.replace(self.run.folder / CHECKPOINT)

    def _resume(self) -> None:
        file = self.run.folder / CHECKPOINT
        if not file.exists():
            return
        try:
            saved = torch.load(file, map_location=self.run.device, weights_only=True)
            for name in _STATE:
                getattr(self, name).load_state_dict(saved[name])
            self.history = saved["history"]
        except Exception as error:
            raise UserError(
                f"{file} does not fit this configuration or is damaged; "
                "delete its folder to start anew"
            ) from error
        tqdm.write(f"resuming after epoch {len(self.history)}")


def _parallel(objective: nn.Module, unused: bool) -> nn.Module:
    """Average gradients over the processes."""
    with warnings.catch_warnings():
        # The name that replaces broadcast_buffers is newer than the oldest torch that is supported.
        warnings.simplefilter("ignore", FutureWarning)
        # Buffers are equal by construction: every process sees the statistics of all.
        return DistributedDataParallel(
            objective, broadcast_buffers=False, find_unused_parameters=unused
        )
