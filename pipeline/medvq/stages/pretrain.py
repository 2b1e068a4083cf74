"""The stage ``pretrain``: a VQ-VAE from unlabelled training images, on MONAI's engines.

Writes into its artifact:

======================  ========================================================================
``model.safetensors``   the weights of the best epoch, see :mod:`medvq.storage.weights`
``history.csv``         one row per epoch: losses and validation measures
``reconstructions.npz`` ``original`` and ``reconstruction``, uint8, validation images as cached
``codebook_use.npy``    int64 (K,): how often each code of the coarsest level was used over the
                        validation images; ``codebook_use_1.npy``, ... of finer levels
``checkpoint.pt``       the last epoch: weights, optimiser, schedule, early stopping
======================  ========================================================================

The loss is the reconstruction error in units of the variance of the training images, plus the
commitment loss, plus the agreement of two views (:mod:`medvq.method.contrast`). Training
ends with the epoch in which it goes wrong, and what the epochs before left is kept
(:mod:`medvq.training.divergence`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, MeanSquaredError
from monai.metrics import SSIMMetric
from numpy.typing import NDArray
from torch import Tensor

from medvq.datasets.manifest import read_manifest
from medvq.distributed import keep_freed_memory
from medvq.errors import UserError
from medvq.method.augmentation import random_versions
from medvq.method.collectives import all_reduce_sum, rank, world_size
from medvq.method.loss import LOSSES, Objective
from medvq.method.quantizer import perplexity
from medvq.method.scaling import to_bytes, to_network, to_unit
from medvq.method.vqvae import architecture, bits_per_position, use_of_codes
from medvq.storage.artifacts import StageContext
from medvq.storage.weights import FILE, save_model
from medvq.training.batches import GROUP, ViewBatches, Views, ahead, epoch_seed
from medvq.training.divergence import refuse_collapse
from medvq.training.loop import Loop, Reiterable

_SHOWN = 12


def pretrain(context: StageContext) -> dict[str, Any]:
    """Run the stage; return its summary."""
    keep_freed_memory()
    return _Pretraining(context).run()


class _Pretraining(Loop):
    """What is trained, on which views, and how it is judged."""

    section = "pretrain"
    doing = "pretraining"
    losses = LOSSES
    batches: ViewBatches

    def __init__(self, context: StageContext) -> None:
        super().__init__(context, context.config.pretrain)
        self.config = context.config.pretrain
        cache = context.inputs["ingest"].folder
        manifest = read_manifest(cache / "manifest.csv")
        images = np.load(cache / "images.npy", mmap_mode="r")
        # Labels are in the manifest, and nothing here reads them.
        split = manifest["split"].to_numpy()
        self.images = images
        train, self.validation = (np.flatnonzero(split == s) for s in ("train", "validation"))
        certain_subjects = manifest["certain_subject_id"].to_numpy(str)[train]
        self.swapped: NDArray[np.uint8] | None = None
        swapped_training = images[:0, None]
        if context.config.ingest.swap.enabled:
            self.swapped = np.load(cache / "swapped_validation.npy", mmap_mode="r")
            swapped_training = np.load(cache / "swapped_training.npy", mmap_mode="r")
        self.swapped_rows = np.flatnonzero(split != "test").searchsorted(self.validation)
        if self.config.image_fraction < 1:
            subjects = manifest["subject_id"].to_numpy(str)[train]
            drawn = share_of_subjects(subjects, self.config.image_fraction, context.config.seed)
            train, swapped_training = train[drawn], swapped_training[:, drawn]
            certain_subjects = certain_subjects[drawn]
        if self.config.contrast.strangers:
            certain_subjects = among_strangers(certain_subjects, context.config.seed)
        self.batches = ViewBatches(
            images,
            train,
            certain_subjects,
            swapped_training,
            self.config,
            context.config.seed,
            rank=rank(),
            world=world_size(),
            device=torch.device(context.device),
        )
        self._refuse_uneven_parts()
        torch.manual_seed(context.config.seed)
        variance = float(np.var(images[train[:: max(1, len(train) // 512)]] / 255.0))
        channels, *spatial = to_unit(np.array(images[:1])).shape[1:]
        self.shape = (channels, len(spatial))
        self.objective = Objective(self.config, max(variance, 1e-6), *self.shape).to(self.device)
        self._prepare(self.objective, unused=self.config.contrast.weight == 0)

    def _refuse_uneven_parts(self) -> None:
        size, number = self.batches.batch_size, world_size()
        if number > 1 and size % (number * GROUP):
            raise UserError(
                f"a batch of {size} images cannot be shared by NPROC={number} processes: each "
                f"takes a multiple of {GROUP}; set pretrain.batch_size to a multiple of "
                f"{number * GROUP} that the training images fill"
            )

    def run(self) -> dict[str, Any]:
        self.fit()
        return self._finish() if rank() == 0 else {}

    def _loaded(self) -> Iterable[Views]:
        return ahead(self.batches, self.device)

    def _evaluator(self) -> SupervisedEvaluator:
        def step(_: Engine, batch: dict[str, Tensor]) -> dict[str, Any]:
            self.objective.eval()
            moved = {key: value.to(self.device) for key, value in batch.items()}
            with torch.inference_mode():
                out: dict[str, Any] = self.objective(**moved)
            return {**out, "target": moved["target"]}

        def images(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return output["images"].clamp(0, 1), output["target"]

        evaluator = SupervisedEvaluator(
            device=self.device,
            val_data_loader=Reiterable(self._validation_batches),
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
        sums: dict[str, float] = {}

        def start(_: Engine) -> None:
            sums.clear()
            self.use = self._unused("cpu")

        def add(engine: Engine) -> None:
            output: dict[str, Any] = engine.state.output
            for name in ("loss", "reconstruction", "contrast"):
                sums[name] = sums.get(name, 0.0) + float(output[name]) * len(output["target"])
            for use, codes in zip(self.use, output["codes"], strict=True):
                use += use_of_codes(codes, len(use))

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
        generator = torch.Generator().manual_seed(epoch_seed(self.context.config.seed, 0))
        size = self.config.batch_size
        for start in range(0, len(self.validation), size):
            target = to_unit(self.images[self.validation[start : start + size]])
            if self.swapped is not None:
                other = to_unit(self.swapped[self.swapped_rows[start : start + size]])
            else:
                other = random_versions(target, config.augment, config.augment_strength, generator)
            yield {"first": to_network(target), "second": to_network(other), "target": target}

    def _begin_epoch(self, engine: Engine) -> None:
        super()._begin_epoch(engine)
        self.use_in_training = self._unused(self.device)

    def _count(self, out: dict[str, Any]) -> None:
        for use, codes in zip(self.use_in_training, out["codes"], strict=True):
            use.index_add_(0, codes.flatten(), torch.ones_like(codes).flatten())

    def _refuse(self, epoch: int) -> None:
        refuse_collapse([all_reduce_sum(use) for use in self.use_in_training], epoch, self.config)

    def _unused(self, device: torch.device | str) -> list[Tensor]:
        return [
            torch.zeros(quantizer.size, dtype=torch.int64, device=device)
            for quantizer in self.objective.network.quantizers
        ]

    def _measures(self, measured: dict[str, float]) -> dict[str, float]:
        return {
            "val_loss": measured["loss"],
            "val_mse": measured["reconstruction"],
            "val_psnr_db": -10 * math.log10(max(measured["mse"], 1e-12)),
            "val_ssim": measured["ssim"],
            "val_contrast": measured["contrast"],
            **self._health(),
        }

    def _keep(self) -> None:
        shape = architecture(self.config, *self.shape)
        save_model(self.objective.network, shape, self.context.folder / FILE)
        for level, use in enumerate(self.use):
            np.save(self.context.folder / codebook_use_of(level), use.numpy())
        self._save_reconstructions()

    def _health(self) -> dict[str, float]:
        """How many codes of each level the validation images use, and how evenly."""
        measured = {}
        for level, use in enumerate(self.use):
            measured[f"codes_used{_suffix(level)}"] = float((use > 0).sum())
            measured[f"perplexity{_suffix(level)}"] = perplexity(use)
        return measured

    def _save_reconstructions(self) -> None:
        chosen = np.linspace(0, len(self.validation) - 1, _SHOWN).astype(int)
        original = self.images[self.validation[chosen]]
        self.objective.eval()
        with torch.inference_mode():
            out = self.objective.network(to_network(to_unit(original)).to(self.device)).images
        images = to_bytes(out)
        images = images.reshape(original.shape)
        np.savez(
            self.context.folder / "reconstructions.npz", original=original, reconstruction=images
        )

    def _finish(self) -> dict[str, Any]:
        best = self.best
        network, axes = self.objective.network, self.shape[1]
        codebook = [
            codebook_health(torch.from_numpy(np.load(self.context.folder / codebook_use_of(level))))
            for level in range(len(network.quantizers))
        ]
        sizes, effective = ([book[key] for book in codebook] for key in ("size", "perplexity"))
        rate = float(np.median([row["images_per_second"] for row in self.history]))
        return {
            "epochs": len(self.history),
            "best_epoch": int(best["epoch"]),
            "images_per_second": round(rate, 1),
            "val_mse": best["val_mse"],
            "val_psnr_db": best["val_psnr_db"],
            "val_ssim": best["val_ssim"],
            "bits_per_position": bits_per_position(sizes, network.halvings, axes),
            "entropy_bits_per_position": bits_per_position(effective, network.halvings, axes),
            "codebook": codebook,
        }


def among_strangers(subjects: NDArray[np.str_], seed: int) -> NDArray[np.str_]:
    """``subjects`` (N,), of whom each image is, with the names of those who have several images
    dealt anew among all such images: every subject has as many images as before.
    """
    _, subject, number = np.unique(subjects, return_inverse=True, return_counts=True)
    several = number[subject] > 1
    dealt = subjects.copy()
    dealt[several] = np.random.default_rng(seed).permutation(subjects[several])
    return dealt


def share_of_subjects(subjects: NDArray[np.str_], fraction: float, seed: int) -> NDArray[np.intp]:
    """Rows of a random share of the subjects, at least one; for a seed, of nested draws.

    The order of subjects is that of their first rows, so that nothing hangs on their names.

    >>> share_of_subjects(np.array(["a", "b", "a", "b"]), 0.5, seed=1).tolist()
    [0, 2]
    """
    _, first, owner = np.unique(subjects, return_index=True, return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(np.argsort(first))
    return np.flatnonzero(np.isin(owner, drawn[: max(1, round(fraction * len(drawn)))]))


def codebook_health(use: Tensor) -> dict[str, Any]:
    """Size of a codebook, how many of its codes are in use, and how evenly.

    >>> codebook_health(torch.tensor([3, 3, 0]))
    {'size': 3, 'used': 2, 'perplexity': 2.0}
    """
    return {"size": len(use), "used": int((use > 0).sum()), "perplexity": perplexity(use)}


def codebook_use_of(level: int) -> str:
    """The file that holds how often each code of a level was used."""
    return f"codebook_use{_suffix(level)}.npy"


def _suffix(level: int) -> str:
    return f"_{level}" if level else ""
