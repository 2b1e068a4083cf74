"""Epochs on MONAI's engines: progress, validation, early stopping, checkpoints, resume, history.

What is trained, on what and how it is judged is a subclass's: see :class:`Loop`.
"""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pandas as pd
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.optimizers import WarmupCosineSchedule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from medvq.config import TrainingConfig
from medvq.errors import UserError
from medvq.method.collectives import all_reduce_sum, rank, world_size
from medvq.storage.artifacts import StageContext
from medvq.training.batches import epoch_seed
from medvq.training.divergence import refuse_divergence, refuse_nan

_STEPS_UNSEEN = 50
_CHECKPOINT = "checkpoint.pt"


# Where a configuration names no epochs: what Kermany's 4,595 training images are trained for, and
# the steps below which a small set's codebook and batch statistics do not settle.
_EPOCHS, _LEAST_STEPS = 18, 600


def epochs_for(config: TrainingConfig, batches: int) -> int:
    """Return how many epochs of so many batches the training has."""
    return config.epochs or max(_EPOCHS, -(-_LEAST_STEPS // batches))


def patience_for(config: TrainingConfig, batches: int) -> int:
    """Return after how many epochs without a better validation loss the training stops."""
    half = 0 if config.epochs else epochs_for(config, batches) // 2
    return max(config.patience, half)


class Batches(Protocol):
    """An epoch of batches, anew at every iteration; of several processes, each makes its part."""

    epoch: int

    @property
    def batch_size(self) -> int:
        """Images in a batch, of all processes together."""

    def __len__(self) -> int: ...


class Loop(ABC):
    """One run: the engines, what hangs on them, and what they leave behind.

    A subclass has ``batches`` and calls :meth:`_prepare` with what is to be trained.

    Attributes
    ----------
    section : of the configuration, for messages.
    doing : for the progress bar.
    losses : names of the scalars that the objective gives, ``loss`` the one that is minimised.
    history : one row per epoch.
    """

    section: ClassVar[str]
    doing: ClassVar[str]
    losses: ClassVar[tuple[str, ...]]
    batches: Batches

    def __init__(self, context: StageContext, config: TrainingConfig) -> None:
        self.context, self.training = context, config
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.device = torch.device(context.device)

    def _prepare(self, objective: nn.Module, unused: bool) -> None:
        """Optimiser and schedule; ``unused``: not every weight has a gradient."""
        config = self.training
        self.trained = objective
        self.optimizer = torch.optim.AdamW(
            objective.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step: nn.Module = objective
        if world_size() > 1:
            self.step = _parallel(objective, unused)
        self.epochs = epochs_for(config, len(self.batches))
        steps = len(self.batches) * self.epochs
        self.schedule = WarmupCosineSchedule(
            self.optimizer, warmup_steps=min(config.warmup_steps, steps // 4), t_total=steps
        )
        self.autocast = config.amp == "bfloat16" or (
            config.amp == "auto" and computes_in_bfloat16(self.device)
        )

    @abstractmethod
    def _loaded(self) -> Iterable[Any]:
        """The batches of an epoch on the device, each the objective's arguments."""

    @abstractmethod
    def _evaluator(self) -> SupervisedEvaluator:
        """Judges the validation images; its metrics hold ``loss``."""

    @abstractmethod
    def _measures(self, measured: dict[str, float]) -> dict[str, float]:
        """What an epoch's row says of the validation, ``val_loss`` among it."""

    @abstractmethod
    def _keep(self) -> None:
        """Write what the epoch made, which is the best so far."""

    @abstractmethod
    def _count(self, out: dict[str, Any]) -> None:
        """Called with what the objective made of each training batch."""

    @abstractmethod
    def _refuse(self, epoch: int) -> None:
        """Raise :class:`UserError` where an epoch's training went wrong in a way of its own."""

    def fit(self) -> None:
        """Train; go on where a run that was interrupted stopped."""
        trainer, evaluator = self._trainer(), self._evaluator()
        evaluator.logger.setLevel("CRITICAL")
        patience = patience_for(self.training, len(self.batches))
        stopping = EarlyStopping(patience, lambda _: -self.history[-1]["val_loss"], trainer)
        state = {
            "objective": self.trained,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "stopping": stopping,
            "history": _History(self.history),
            "trainer": trainer,
        }
        saver = DiskSaver(str(self.context.folder), atomic=True, require_empty=False)
        # As a plain callable, since of a handler ignite removes the old file before it writes anew.
        checkpoint = Checkpoint(state, saver.__call__, filename_pattern=_CHECKPOINT)
        trainer.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)
        self._attach_progress(trainer)
        ValidationHandler(1, evaluator, epoch_level=True).attach(trainer)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch, evaluator)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, stopping)
        if rank() == 0:
            trainer.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)
        self._resume(state)
        stopped = stopping.counter >= patience
        if trainer.state.epoch < self.epochs and not stopped:
            trainer.run()

    @property
    def best(self) -> dict[str, float]:
        """The row of the epoch with the least validation loss."""
        return min(self.history, key=lambda row: row["val_loss"])

    def _trainer(self) -> SupervisedTrainer:
        def step(engine: Engine, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            self.trained.train()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                out: dict[str, Any] = self.step(**batch)
            # Elsewhere to look at the loss is to wait for the device.
            if self.device.type == "cpu" or engine.state.iteration % _STEPS_UNSEEN == 0:
                refuse_nan(out["loss"].item(), engine.state.epoch, self._rate)
            self.optimizer.zero_grad(set_to_none=True)
            out["loss"].backward()
            self.optimizer.step()
            self._count(out)
            return {name: out[name].detach() for name in self.losses}

        trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=self.epochs,
            train_data_loader=Reiterable(self._loaded),
            epoch_length=len(self.batches),
            network=self.trained,
            optimizer=self.optimizer,
            loss_function=lambda *_: None,
            iteration_update=step,
            decollate=False,
            train_handlers=[LrScheduleHandler(self.schedule, epoch_level=False, print_lr=False)],
        )
        # What ends a run is raised; ignite would tell it twice more.
        trainer.logger.setLevel("CRITICAL")
        return trainer

    @property
    def _rate(self) -> str:
        """The learning rate as a user writes it."""
        return f"{self.section}.learning_rate={self.training.learning_rate:g}"

    def _begin_epoch(self, engine: Engine) -> None:
        self.batches.epoch = engine.state.epoch
        # Restarted codes and dropout draw from the global generator.
        torch.manual_seed(epoch_seed(self.context.config.seed + 1, engine.state.epoch))
        self.sums = torch.zeros(len(self.losses), dtype=torch.float64, device=self.device)
        self.started = time.perf_counter()

    def _attach_progress(self, trainer: SupervisedTrainer) -> None:
        size = self.batches.batch_size
        images = self.epochs * len(self.batches) * size
        bar = tqdm(
            total=images,
            desc=self.doing,
            unit=" images",
            mininterval=2.0,
            smoothing=0.05,
            disable=rank() > 0,
        )

        def catch_up(engine: Engine) -> None:
            bar.update(engine.state.iteration * size - bar.n)

        def advance(engine: Engine) -> None:
            output: dict[str, Tensor] = engine.state.output
            # Added up where they are: to look at one is to wait for the device.
            losses = torch.stack([output[name] for name in self.losses]).double()
            if engine.state.iteration == 1:
                self.of_first_batch = losses
            self.sums += losses
            bar.update(size)

        def end_epoch(_: Engine) -> None:
            self.seconds = time.perf_counter() - self.started

        trainer.add_event_handler(Events.STARTED, catch_up)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, advance)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, end_epoch)
        trainer.add_event_handler(Events.COMPLETED, lambda _: bar.close())

    def _end_epoch(self, engine: Engine, evaluator: SupervisedEvaluator) -> None:
        measured = evaluator.state.metrics
        refuse_nan(measured["loss"], engine.state.epoch, self._rate)
        row = {"epoch": float(engine.state.epoch)} | self._over_processes(
            self.sums / len(self.batches)
        )
        before = self.history or [{"epoch": 0.0} | self._over_processes(self.of_first_batch)]
        refuse_divergence(row, before, self.losses[1:], self._rate)
        row |= self._measures(measured)
        row |= {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": len(self.batches) * self.batches.batch_size / self.seconds,
        }
        self._refuse(engine.state.epoch)
        best = min((r["val_loss"] for r in self.history), default=math.inf)
        self.history.append(row)
        if rank() > 0:
            return
        if row["val_loss"] < best:
            self._keep()
        pd.DataFrame(self.history).to_csv(self.context.folder / "history.csv", index=False)
        self.context.report({k: v for k, v in row.items() if k != "epoch"}, int(row["epoch"]))

    def _over_processes(self, losses: Tensor) -> dict[str, float]:
        """Each of :attr:`losses`, a mean over what this process saw, as one over all processes."""
        return dict(zip(self.losses, (all_reduce_sum(losses) / world_size()).tolist(), strict=True))

    def _resume(self, state: dict[str, Any]) -> None:
        file = self.context.folder / _CHECKPOINT
        if not file.exists():
            return
        try:
            saved = torch.load(file, map_location=self.device, weights_only=True)
            Checkpoint.load_objects(state, saved)
        except Exception as error:
            raise UserError(
                f"{file} does not fit this configuration or is damaged; "
                "delete its folder to start anew"
            ) from error
        tqdm.write(f"resuming after epoch {len(self.history)}")


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` has instructions for bfloat16; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Torch before 2.11 does not say what a processor can.
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _parallel(objective: nn.Module, unused: bool) -> nn.Module:
    """Gradients averaged over the processes; ``unused``: not every weight has one."""
    with warnings.catch_warnings():
        # The name that replaces broadcast_buffers is newer than the oldest torch that is supported.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            objective,
            # Equal by construction: every process sees the statistics of all.
            broadcast_buffers=False,
            find_unused_parameters=unused,
        )


class _History:
    """Lets the list of epochs travel in a checkpoint."""

    def __init__(self, rows: list[dict[str, float]]) -> None:
        self.rows = rows

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows[:] = state["rows"]


class Reiterable:
    """A loader that begins anew at every iteration over it."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make())


def checkpoint_of(folder: Path) -> Path:
    """Where a run keeps its last epoch."""
    return folder / _CHECKPOINT
