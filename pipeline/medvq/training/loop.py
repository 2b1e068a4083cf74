"""The training loop: epochs, validation, early stopping, checkpoints and bit-identical resume.

An epoch ends in this order: validation, the weights of the best epoch, the history, the checkpoint,
the report. A run that is killed at any point continues from its last checkpoint and ends with the
same bits, in the same number of threads, since everything random comes from (seed, epoch).
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
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
from medvq.training.checkpoint import DeferredInterruption, load_checkpoint, save_checkpoint
from medvq.training.divergence import check_divergence, check_finite, refuse_batch
from medvq.training.threads import TrainingThreads
from medvq.wording import counted

CHECKPOINT, HISTORY = "checkpoint.pt", "history.csv"
# Where the configuration sets no epochs: eighteen, as for the default data set, and for a small set
# as many as make so many steps, about what the default data set takes.
_EPOCHS, _FEWEST_STEPS = 18, 600
_STATE = ("objective", "optimizer", "schedule")  # attributes that a checkpoint holds
_CHECKPOINT_SECONDS = 300.0  # between checkpoints within an epoch: the most that a kill costs
_STEPS_TIMED = 10  # after the first, which is slower, until the duration of the training is told
_STEPS_UNCHECKED = 50  # on a GPU between looks at the losses, since each waits for the device


def epoch_count(config: TrainingConfig, batches: int) -> int:
    """Return the number of epochs, of so many batches, that a training has at most."""
    return max(_EPOCHS, -(-_FEWEST_STEPS // batches)) if config.epochs is None else config.epochs


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
    threads: TrainingThreads


class Batches(Protocol):
    """The batches of an epoch; where there are several processes, each makes its own part."""

    epoch: int
    first: int  # number of the batch that the next iteration begins with

    @property
    def batch_size(self) -> int:
        """Images in a batch, of all processes together."""

    def __len__(self) -> int: ...


@dataclass
class Position:
    """How far an epoch is, for a checkpoint within it."""

    step: int  # batches done
    seconds: float  # that they took
    sums: Tensor  # of the terms of their losses, (terms,)
    counts: list[Tensor]  # see :meth:`TrainingLoop.counts`
    random: list[Tensor]  # states of torch's generators, of the CPU and of the device


class TrainingLoop(ABC):
    """One training run; a subclass says what is trained, on what, and how it is judged.

    The output of ``objective`` has the scalar ``loss`` and the other ``terms``; ``unused`` says
    whether some of its weights have no gradient. ``history`` has one row per epoch.
    """

    section: ClassVar[str]  # of the configuration, for messages
    activity: ClassVar[str]  # for the progress bar
    terms: ClassVar[tuple[str, ...]]  # scalars that are averaged over an epoch, ``loss`` first
    judged_by = "val_loss"  # the column of ``history`` that is least in the best epoch

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
        self.first_losses = self._zeros()
        self._position: Position | None = None
        self._saved = time.monotonic()
        self._step_times: list[float] = []

    @abstractmethod
    def load(self) -> Iterable[Mapping[str, object]]:
        """Yield the batches of an epoch on the device, each the objective's arguments."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Return the columns of an epoch's row on the validation images, ``val_loss`` first."""

    @abstractmethod
    def save_best(self) -> None:
        """Write the weights, and whatever shows them, after the best epoch so far."""

    @abstractmethod
    def image_faults(self, batch: int) -> dict[str, str]:
        """Return what is wrong with the images of a batch of this epoch, see refuse_batch.

        ``batch`` is its number from 0; images are those of this process.
        """

    def begin_epoch(self) -> None:  # noqa: B027  # optional for subclasses
        """Prepare for an epoch's calls of :meth:`count`."""

    def count(self, out: Any) -> None:  # noqa: B027  # optional for subclasses
        """Take the objective's output of each training batch."""

    def counts(self) -> list[Tensor]:
        """Return the tensors that :meth:`count` adds to."""
        return []

    def check_epoch(self, epoch: int) -> None:  # noqa: B027  # optional for subclasses
        """Raise a :class:`UserError` where an epoch's training failed in a way of its own."""

    def fit(self) -> None:
        """Train, from where an interrupted run in the same folder stopped."""
        self._resume()
        if self.epochs == 0:
            self._announce("no epochs; the network stays as it starts")
            if not self.history:
                self._end_epoch(0, self._begin(0))
            return
        images = len(self.batches) * self.batches.batch_size
        most = patience(self.training, len(self.batches))
        with tqdm(
            total=self.epochs * images,
            initial=len(self.history) * images + self._first * self.batches.batch_size,
            desc=self.activity,
            unit=" images",
            mininterval=2.0,
            smoothing=0.05,
            disable=rank() > 0,
        ) as progress:
            self._announce(
                f"at most {counted(self.epochs, 'epoch')} of {counted(len(self.batches), 'step')}; "
                f"ends after {counted(most, 'epoch')} without a better validation loss"
            )
            for epoch in range(len(self.history) + 1, self.epochs + 1):
                if self.history and len(self.history) - self.best["epoch"] >= most:
                    break
                with DeferredInterruption() as interruption:
                    trained = self._train(epoch, progress, interruption)
                try:
                    self._end_epoch(epoch, trained)
                except KeyboardInterrupt:
                    if len(self.history) < epoch and world_size() == 1:
                        self._save_checkpoint(trained)
                    raise

    @property
    def best(self) -> dict[str, float]:
        """The row of the epoch that does best in validation, the first of equal ones."""
        return min(self.history, key=lambda row: row[self.judged_by])

    @property
    def _rate(self) -> str:
        """The learning rate as a user writes it."""
        return f"{self.section}.learning_rate={self.training.learning_rate:g}"

    @property
    def _first(self) -> int:
        """Batches of the next epoch that an interrupted run has done."""
        return self._position.step if self._position else 0

    @property
    def _steps_unchecked(self) -> int:
        """Steps from one look at the losses to the next."""
        return 1 if self.run.device.type == "cpu" else _STEPS_UNCHECKED

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self.terms), dtype=torch.float64, device=self.run.device)

    def _begin(self, epoch: int) -> Position:
        """Prepare for an epoch, or for the rest of one that was interrupted."""
        self.batches.epoch, self.batches.first = epoch, self._first
        # Restarted codes and dropout draw from the global generator.
        torch.manual_seed(epoch_seed(self.run.seed + 1, epoch))
        self.begin_epoch()
        self.objective.train()
        position, self._position = self._position, None
        if position is None:
            return Position(0, 0.0, self._zeros(), self.counts(), [])
        _set_random_states(position.random, self.run.device)
        for counts, before in zip(self.counts(), position.counts, strict=True):
            counts.copy_(before)
        return replace(position, counts=self.counts())

    def _train(
        self, epoch: int, progress: tqdm[Any], interruption: DeferredInterruption
    ) -> Position:
        """Train to the end of an epoch; where a checkpoint is due, write it between two steps."""
        position = self._begin(epoch)
        started = time.perf_counter() - position.seconds
        first = 1 + (epoch - 1) * len(self.batches) + position.step
        unchecked: list[Tensor] = []
        for number, batch in enumerate(self.load(), first):
            with torch.autocast(self.run.device.type, torch.bfloat16, enabled=self.autocast):
                out = self.forward(**batch)
            unchecked.append(out.loss.detach())
            if len(unchecked) == self._steps_unchecked or position.step + 1 == len(self.batches):
                self._check_losses(epoch, position.step + 1, unchecked)
            self.optimizer.zero_grad(set_to_none=True)
            out.loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.count(out)
            # Added up on the device, since to look at a value is to wait for it.
            losses = torch.stack([getattr(out, name).detach() for name in self.terms]).double()
            if number == 1:
                self.first_losses = losses
            position.sums += losses
            position.step += 1
            position.seconds = time.perf_counter() - started
            progress.update(self.batches.batch_size)
            self._estimate_duration(progress)
            self._save_within_epoch(position, interruption)
            self.run.threads.adapt()
        return position

    def _check_losses(self, epoch: int, steps: int, losses: list[Tensor]) -> None:
        """Look at the last ``losses`` of the ``steps`` of an epoch, and empty the list."""
        for number, loss in enumerate(torch.stack(losses).tolist(), 1 + steps - len(losses)):
            if not math.isfinite(loss):
                refuse_batch(loss, number, self.image_faults(number - 1), epoch, self._rate)
        losses.clear()

    def _estimate_duration(self, progress: tqdm[Any]) -> None:
        """Announce the duration of the training once a few steps have been timed."""
        if len(self._step_times) > _STEPS_TIMED:
            return
        self._step_times.append(time.monotonic())
        if len(self._step_times) == 1 + _STEPS_TIMED:
            seconds = (self._step_times[-1] - self._step_times[0]) / _STEPS_TIMED
            images = float(progress.total or 0) - progress.n
            remaining = images / self.batches.batch_size
            minutes = math.ceil(seconds * remaining / 60)
            self._announce(f"about {minutes} minute{'s' * (minutes > 1)} for all epochs")

    def _announce(self, text: str) -> None:
        if rank() == 0:
            tqdm.write(f"{self.activity}: {text}", file=sys.stderr)

    def _save_within_epoch(self, position: Position, interruption: DeferredInterruption) -> None:
        """Write a checkpoint where one is due; then let an interruption end the run.

        Several processes have sums and counts of their own: they go back to the last epoch.
        """
        due = time.monotonic() - self._saved > _CHECKPOINT_SECONDS
        if world_size() == 1 and (due or interruption.received is not None):
            self._save_checkpoint(position)
        interruption.pass_on()

    def _end_epoch(self, epoch: int, trained: Position) -> None:
        validation = self.validate()
        check_finite(validation["val_loss"], epoch, self._rate)
        row = {"epoch": float(epoch)} | self._mean(trained.sums / len(self.batches))
        before = self.history or [{"epoch": 0.0} | self._mean(self.first_losses)]
        if trained.step:
            check_divergence(row, before, self.terms[1:], self._rate)
            self.check_epoch(epoch)
        rate = self.optimizer.param_groups[0]["lr"]
        images = trained.step * self.batches.batch_size
        speed = images / trained.seconds if trained.step else 0.0
        row |= validation | {"learning_rate": rate, "images_per_second": speed}
        best = self.best[self.judged_by] if self.history else math.inf
        self.history.append(row)
        if rank() > 0:
            return
        if row[self.judged_by] < best:
            self.save_best()
        pd.DataFrame(self.history).to_csv(self.run.folder / HISTORY, index=False)
        self._save_checkpoint()
        self._report(row)

    def _report(self, row: Mapping[str, float]) -> None:
        metrics = {name: value for name, value in row.items() if name != "epoch"}
        self.run.report(metrics, int(row["epoch"]))

    def _mean(self, losses: Tensor) -> dict[str, float]:
        """Return each term's mean over the processes; ``losses`` are those of this one."""
        means = (all_reduce_sum(losses) / world_size()).tolist()
        return dict(zip(self.terms, means, strict=True))

    def _save_checkpoint(self, position: Position | None = None) -> None:
        """Write a checkpoint: at the end of an epoch, or within the next at ``position``."""
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in _STATE}
        state |= {"history": self.history, "first_losses": self.first_losses, "position": None}
        state["threads"] = torch.get_num_threads()
        if position is not None:
            state["position"] = vars(replace(position, random=_random_states(self.run.device)))
        save_checkpoint(self.run.folder / CHECKPOINT, state)
        self._saved = time.monotonic()

    def _resume(self) -> None:
        file = self.run.folder / CHECKPOINT
        if not file.exists():
            return
        saved = load_checkpoint(file, self.run.device)
        try:
            for name in _STATE:
                getattr(self, name).load_state_dict(saved[name])
            self.history, self.first_losses = saved["history"], saved["first_losses"]
            position = saved["position"]
        except Exception as error:
            raise UserError(
                f"{file} does not fit this configuration; delete its folder to start anew"
            ) from error
        self._position = Position(**position) if position else None
        self.run.threads.resume(saved.get("threads"))
        within = f" and {self._first} batches" if position else ""
        tqdm.write(f"resuming after {counted(len(self.history), 'epoch')}{within}")
        # A kill may have come between a checkpoint and its report.
        for row in self.history if rank() == 0 else ():
            self._report(row)


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_states(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1].cpu(), device)


def _parallel(objective: nn.Module, unused: bool) -> nn.Module:
    """Average gradients over the processes."""
    with warnings.catch_warnings():
        # The name that replaces broadcast_buffers is newer than the oldest torch that is supported.
        warnings.simplefilter("ignore", FutureWarning)
        # Buffers are equal by construction: every process sees the statistics of all.
        return DistributedDataParallel(
            objective, broadcast_buffers=False, find_unused_parameters=unused
        )
