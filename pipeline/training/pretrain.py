"""The stage ``pretrain``: a VQ-VAE from unlabelled training images, on MONAI's engines.

Writes into its artifact:

======================  ========================================================================
``model.safetensors``   the weights of the best epoch, see :mod:`pipeline.training.weights`
``history.csv``         one row per epoch: losses and validation measures
``reconstructions.npz`` ``original`` and ``reconstruction``, uint8, validation images as cached
``codebook_use.npy``    int64 (K,): how often each code was used over the validation images
``checkpoint.pt``       the last epoch: weights, optimiser, schedule, early stopping
======================  ========================================================================

The loss is the reconstruction error in units of the variance of the training images, plus the
commitment loss, plus the agreement of two views (:mod:`pipeline.training.agreement`).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import (
    IgniteMetricHandler,
    LrScheduleHandler,
    MeanSquaredError,
    ValidationHandler,
)
from monai.metrics import SSIMMetric
from monai.optimizers import WarmupCosineSchedule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pipeline.data.augment import random_versions
from pipeline.data.manifest import read_manifest
from pipeline.errors import UserError
from pipeline.models.collective import rank, total, world
from pipeline.models.quantizer import perplexity
from pipeline.models.vqvae import use_of_codes
from pipeline.processes import keep_freed_memory
from pipeline.stage import Work
from pipeline.training.batches import GROUP, ViewBatches, ahead, epoch_seed, normalise, to_unit
from pipeline.training.objective import LOSSES, Objective
from pipeline.training.weights import FILE, architecture, save_model

_CHECKPOINT = "checkpoint.pt"
_SHOWN = 12
# Steps between two looks at the loss: to look at it is to wait for the device.
_STEPS_UNSEEN = 50


def pretrain(work: Work) -> dict[str, Any]:
    """Run the stage; return its summary."""
    keep_freed_memory()
    return _Pretraining(work).run()


class _Pretraining:
    """One run: the engines, what hangs on them, and what they leave behind."""

    def __init__(self, work: Work) -> None:
        self.work, self.config = work, work.config.pretrain
        cache = work.inputs["ingest"].folder
        manifest = read_manifest(cache / "manifest.csv")
        images = np.load(cache / "images.npy", mmap_mode="r")
        # Labels are in the manifest, and nothing here reads them.
        split = manifest["split"].to_numpy()
        self.images = images
        train, self.validation = (np.flatnonzero(split == s) for s in ("train", "validation"))
        self.swapped: NDArray[np.uint8] | None = None
        swapped_training = images[:0, None]
        if work.config.ingest.swap.enabled:
            self.swapped = np.load(cache / "swapped_validation.npy", mmap_mode="r")
            swapped_training = np.load(cache / "swapped_training.npy", mmap_mode="r")
        self.swapped_rows = np.flatnonzero(split != "test").searchsorted(self.validation)
        self.batches = ViewBatches(
            images,
            train,
            swapped_training,
            self.config,
            work.config.seed,
            rank=rank(),
            world=world(),
            device=torch.device(work.device),
        )
        self._refuse_uneven_parts()
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        torch.manual_seed(work.config.seed)
        variance = float(np.var(images[train[:: max(1, len(train) // 512)]] / 255.0))
        self.device = torch.device(work.device)
        channels, *spatial = to_unit(np.array(images[:1])).shape[1:]
        self.shape = (channels, len(spatial))
        self.objective = Objective(self.config, max(variance, 1e-6), *self.shape).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.objective.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        self.step: nn.Module = self.objective
        if world() > 1:
            self.step = _parallel(self.objective, unused=self.config.agreement.weight == 0)
        steps = len(self.batches) * self.config.epochs
        self.schedule = WarmupCosineSchedule(
            self.optimizer, warmup_steps=min(self.config.warmup_steps, steps // 4), t_total=steps
        )
        self.autocast = self.config.amp == "bfloat16" or (
            self.config.amp == "auto" and self.device.type == "cuda"
        )

    def _refuse_uneven_parts(self) -> None:
        size, number = self.batches.batch_size, world()
        if number > 1 and size % (number * GROUP):
            raise UserError(
                f"a batch of {size} images cannot be shared by NPROC={number} processes: each "
                f"takes a multiple of {GROUP}; set pretrain.batch_size to a multiple of "
                f"{number * GROUP} that the training images fill"
            )

    def run(self) -> dict[str, Any]:
        trainer, evaluator = self._trainer(), self._evaluator()
        stopping = EarlyStopping(
            self.config.patience, lambda _: -self.history[-1]["val_loss"], trainer
        )
        state = {
            "objective": self.objective,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "stopping": stopping,
            "history": _History(self.history),
            "trainer": trainer,
        }
        saver = DiskSaver(str(self.work.folder), atomic=True, require_empty=False)
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
        stopped = stopping.counter >= self.config.patience
        if trainer.state.epoch < self.config.epochs and not stopped:
            trainer.run()
        return self._finish() if rank() == 0 else {}

    def _trainer(self) -> SupervisedTrainer:
        def step(engine: Engine, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            self.objective.train()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                losses: dict[str, Tensor] = self.step(**batch)
            if engine.state.iteration % _STEPS_UNSEEN == 0:
                self._refuse_divergence(losses["loss"].item(), engine.state.epoch)
            self.optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            self.optimizer.step()
            return {name: value.detach() for name, value in losses.items()}

        trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=self.config.epochs,
            train_data_loader=_Reiterable(lambda: ahead(self.batches, self.device)),
            epoch_length=len(self.batches),
            network=self.objective,
            optimizer=self.optimizer,
            loss_function=lambda *_: None,
            iteration_update=step,
            decollate=False,
            train_handlers=[LrScheduleHandler(self.schedule, epoch_level=False, print_lr=False)],
        )
        # What ends a run is raised; ignite would tell it twice more.
        trainer.logger.setLevel("CRITICAL")
        return trainer

    def _refuse_divergence(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"training diverged in epoch {epoch} (the loss is {loss}); lower "
                f"pretrain.learning_rate={self.config.learning_rate:g}. The epochs before are kept"
            )

    def _evaluator(self) -> SupervisedEvaluator:
        def step(_: Engine, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            self.objective.eval()
            moved = {key: value.to(self.device) for key, value in batch.items()}
            with torch.inference_mode():
                out: dict[str, Tensor] = self.objective(**moved)
            return {**out, "target": moved["target"]}

        def images(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return output["images"].clamp(0, 1), output["target"]

        evaluator = SupervisedEvaluator(
            device=self.device,
            val_data_loader=_Reiterable(self._validation_batches),
            network=self.objective,
            iteration_update=step,
            decollate=False,
            key_val_metric={"mse": MeanSquaredError(output_transform=images)},
            additional_metrics={
                "ssim": IgniteMetricHandler(
                    SSIMMetric(spatial_dims=self.shape[1], data_range=1.0),
                    output_transform=images,
                    save_details=False,
                )
            },
        )
        evaluator.logger.setLevel("CRITICAL")
        sums: dict[str, float] = {}

        def start(_: Engine) -> None:
            sums.clear()
            self.use = torch.zeros(self.config.codebook_size, dtype=torch.int64)

        def add(engine: Engine) -> None:
            output: dict[str, Tensor] = engine.state.output
            for name in ("loss", "reconstruction", "agreement"):
                sums[name] = sums.get(name, 0.0) + float(output[name]) * len(output["codes"])
            self.use += use_of_codes(output["codes"], self.config.codebook_size)

        def average(engine: Engine) -> None:
            for name, added in sums.items():
                engine.state.metrics[name] = added / len(self.validation)

        evaluator.add_event_handler(Events.STARTED, start)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, add)
        evaluator.add_event_handler(Events.COMPLETED, average)
        return evaluator

    def _validation_batches(self) -> Iterator[dict[str, Tensor]]:
        """Each validation image as it is, against its swapped copy of the kind held back, or,
        where acquisitions are not swapped, against the same random version in every epoch.
        """
        config = self.config
        generator = torch.Generator().manual_seed(epoch_seed(self.work.config.seed, 0))
        size = self.config.batch_size
        for start in range(0, len(self.validation), size):
            target = to_unit(self.images[self.validation[start : start + size]])
            if self.swapped is not None:
                other = to_unit(self.swapped[self.swapped_rows[start : start + size]])
            else:
                other = random_versions(target, config.augment, config.augment_strength, generator)
            yield {"first": normalise(target), "second": normalise(other), "target": target}

    def _begin_epoch(self, engine: Engine) -> None:
        self.batches.epoch = engine.state.epoch
        # Restarted codes draw from the global generator.
        torch.manual_seed(epoch_seed(self.work.config.seed + 1, engine.state.epoch))
        self.sums: dict[str, Tensor] = {}
        self.started = time.perf_counter()

    def _attach_progress(self, trainer: SupervisedTrainer) -> None:
        size = self.batches.batch_size
        images = self.config.epochs * len(self.batches) * size
        bar = tqdm(
            total=images,
            desc="pretraining",
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
            for name in LOSSES:
                self.sums[name] = self.sums.get(name, 0) + output[name].double()
            bar.update(size)

        def end_epoch(_: Engine) -> None:
            self.seconds = time.perf_counter() - self.started

        trainer.add_event_handler(Events.STARTED, catch_up)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, advance)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, end_epoch)
        trainer.add_event_handler(Events.COMPLETED, lambda _: bar.close())

    def _end_epoch(self, engine: Engine, evaluator: SupervisedEvaluator) -> None:
        measured = evaluator.state.metrics
        row = {"epoch": float(engine.state.epoch)}
        sums = total(torch.stack([self.sums[name] for name in LOSSES])) / world()
        row |= dict(zip(LOSSES, (sums / len(self.batches)).tolist(), strict=True))
        for loss in (row["loss"], measured["loss"]):
            self._refuse_divergence(loss, engine.state.epoch)
        row |= {
            "val_loss": measured["loss"],
            "val_mse": measured["reconstruction"],
            "val_psnr_db": -10 * math.log10(max(measured["mse"], 1e-12)),
            "val_ssim": measured["ssim"],
            "val_agreement": measured["agreement"],
            "codes_used": float((self.use > 0).sum()),
            "perplexity": perplexity(self.use),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": len(self.batches) * self.batches.batch_size / self.seconds,
        }
        best = min((r["val_loss"] for r in self.history), default=math.inf)
        self.history.append(row)
        if rank() > 0:
            return
        if row["val_loss"] < best:
            shape = architecture(self.config, *self.shape)
            save_model(self.objective.network, shape, self.work.folder / FILE)
            np.save(self.work.folder / "codebook_use.npy", self.use.numpy())
            self._save_reconstructions()
        pd.DataFrame(self.history).to_csv(self.work.folder / "history.csv", index=False)
        self.work.report({k: v for k, v in row.items() if k != "epoch"}, int(row["epoch"]))

    def _save_reconstructions(self) -> None:
        chosen = np.linspace(0, len(self.validation) - 1, _SHOWN).astype(int)
        original = self.images[self.validation[chosen]]
        self.objective.eval()
        with torch.inference_mode():
            out = self.objective.network(normalise(to_unit(original)).to(self.device)).images
        images = ((out * 0.25 + 0.5).clamp(0, 1) * 255).round().byte().cpu().numpy()
        images = images.reshape(original.shape)
        np.savez(self.work.folder / "reconstructions.npz", original=original, reconstruction=images)

    def _resume(self, state: dict[str, Any]) -> None:
        file = self.work.folder / _CHECKPOINT
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

    def _finish(self) -> dict[str, Any]:
        best = min(self.history, key=lambda row: row["val_loss"])
        use: NDArray[np.int64] = np.load(self.work.folder / "codebook_use.npy")
        rate = float(np.median([row["images_per_second"] for row in self.history]))
        return {
            "epochs": len(self.history),
            "best_epoch": int(best["epoch"]),
            "images_per_second": round(rate, 1),
            "val_mse": best["val_mse"],
            "val_psnr_db": best["val_psnr_db"],
            "val_ssim": best["val_ssim"],
            "codebook": [
                {
                    "size": len(use),
                    "used": int((use > 0).sum()),
                    "perplexity": perplexity(torch.from_numpy(use)),
                }
            ],
        }


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


class _Reiterable:
    """A loader that begins anew at every iteration over it."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.make())


def checkpoint_of(folder: Path) -> Path:
    """Where a run keeps its last epoch."""
    return folder / _CHECKPOINT
