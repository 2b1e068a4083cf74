"""Pretraining of the VQ-VAE: on which images it trains, and how each epoch is judged.

The loss is the reconstruction error in units of the variance of the training images, plus the
commitment loss, plus the contrastive loss of two views; see :mod:`medvq.method.loss`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from monai.metrics import MSEMetric, SSIMMetric
from numpy.typing import NDArray
from torch import Tensor

from medvq.config import PretrainConfig
from medvq.errors import Notice, UserError
from medvq.evaluation.codebooks import bits_per_position, codebook_use, count_codes
from medvq.method.augmentation import random_versions
from medvq.method.collectives import all_reduce_sum, rank, world_size
from medvq.method.loss import PretrainingLoss, PretrainingOutput
from medvq.method.quantizer import decay_over
from medvq.method.scaling import to_bytes, to_network, to_unit
from medvq.method.statistics import adapt_statistics
from medvq.storage.start import load_start
from medvq.storage.weights import FILE, save_model
from medvq.summaries import PretrainSummary
from medvq.training.batches import GROUP, Rows, ViewBatches, Views, epoch_seed, prefetch
from medvq.training.divergence import check_collapse
from medvq.training.loop import Run, TrainingLoop

RECONSTRUCTIONS = "reconstructions.npz"
_SHOWN = 12  # validation images whose reconstructions are kept for the figure
_STATISTICS_IMAGES = 512
_CODEBOOK_IMAGES = 1024  # some hundred places of each
_BATCH = 64
_VARIANCE_IMAGES = 512  # evenly spaced, for an estimate of the variance of the training images
_LEAST_SIDE = 3  # of the smallest map of a volume, that of the kernels


@dataclass(frozen=True)
class PretrainingData:
    """The images of pretraining, as they lie in the cache."""

    images: NDArray[np.uint8]  # the cache
    image_ids: NDArray[np.str_]  # of each image in it
    train: Rows  # the training images in it
    validation: Rows
    subjects: NDArray[np.str_]  # of each training image, beyond doubt
    swapped_training: NDArray[np.uint8]  # (copies, train, ...); none where empty
    swapped_validation: NDArray[np.uint8] | None  # copies of the kind held back from training
    swapped_rows: Rows  # of each validation image in the latter


class Pretraining(TrainingLoop):
    """A pretraining run."""

    section = "pretrain"
    activity = "pretraining"
    terms = ("loss", "reconstruction", "contrast", "commitment")
    batches: ViewBatches
    objective: PretrainingLoss

    def __init__(self, data: PretrainingData, config: PretrainConfig, run: Run) -> None:
        self.data, self.config = data, config
        if config.contrast.weight == 0:
            # The commitment, which a hierarchy has several of, is no aim of its own.
            self.judged_by = "val_mse"
        batches = ViewBatches(
            data.images,
            data.train,
            data.subjects,
            data.swapped_training,
            config,
            run.seed,
            rank=rank(),
            world=world_size(),
            device=run.device,
        )
        _check_parts(batches.batch_size)
        sample = data.train[:: max(1, len(data.train) // _VARIANCE_IMAGES)]
        variance = float(np.var(data.images[sample] / 255.0))
        channels, *spatial = to_unit(np.array(data.images[:1])).shape[1:]
        self.axes = len(spatial)
        torch.manual_seed(run.seed)
        objective = PretrainingLoss(config, max(variance, 1e-6), channels, self.axes)
        load_start(objective.network, config.start_from)
        objective.to(run.device)
        if config.adapt_statistics:
            some = self._evenly_spaced(_STATISTICS_IMAGES, run.device)
            adapt_statistics(objective.network.encoder, some)
        objective.network.freeze(config.frozen_levels)
        super().__init__(run, config, objective, batches, unused=config.contrast.weight == 0)
        # On processors oneDNN's gradients of weights in bfloat16 are of memory that nothing has
        # written where a map of a volume is thinner than the kernel (oneDNN 3.12, torch 2.13).
        halvings = max(objective.network.halvings)
        least = min(config.view_size or side for side in spatial) // 2**halvings
        if self.axes == 3 and least < _LEAST_SIDE and run.device.type == "cpu":
            if config.amp == "bfloat16":
                text = "volumes so thin are trained in float32 on a processor, not in bfloat16"
                warnings.warn(Notice(text), stacklevel=2)
            self.autocast = False
        for quantizer in objective.network.quantizers:
            quantizer.decay = decay_over(self.epochs * len(batches), config.decay)

    def _evenly_spaced(self, images: int, device: torch.device) -> Iterator[Tensor]:
        """Yield training images as they are, in batches, the same in every process.

        At least so many, where there are as many.
        """
        rows = self.data.train[:: max(1, len(self.data.train) // images)]
        for part in np.array_split(rows, -(-len(rows) // _BATCH)):
            yield to_network(to_unit(self.data.images[part])).to(device)

    def load(self) -> Iterable[Views]:
        return prefetch(self.batches, self.run.device)

    def fit(self) -> None:
        """Train; without epochs, fit codes that do not come with the weights."""
        network = self.objective.network
        if self.epochs == 0 and not all(one.initialised for one in network.quantizers):
            batches = partial(self._evenly_spaced, _CODEBOOK_IMAGES, self.run.device)
            network.eval().fit_codes(batches, self.run.seed)
        super().fit()

    def image_faults(self, batch: int) -> dict[str, str]:
        """Make the views of the batch again, and look at them and at the images themselves."""
        views = next(iter(replace(self.batches, first=batch)))
        finite = [views[name].isfinite().flatten(1).all(1).cpu() for name in ("first", "second")]
        rows = self.data.train[self.batches.rows_of(batch)]
        images = self.data.images[rows].reshape(len(rows), -1)
        faults = np.select(
            [~torch.stack(finite).all(0).numpy(), images.min(1) == images.max(1)],
            ["not finite once augmented", "constant"],
            "",
        )
        pairs = zip(self.data.image_ids[rows].tolist(), faults.tolist(), strict=True)
        # An image may be there twice, and be at fault once.
        return dict(sorted(pairs, key=lambda pair: pair[1]))

    def begin_epoch(self) -> None:
        self.use_in_training = self._unused(self.run.device)

    def count(self, out: PretrainingOutput) -> None:
        for use, codes in zip(self.use_in_training, out.codes, strict=True):
            use.index_add_(0, codes.flatten(), torch.ones_like(codes).flatten())

    def counts(self) -> list[Tensor]:
        return self.use_in_training

    def check_epoch(self, epoch: int) -> None:
        check_collapse([all_reduce_sum(use) for use in self.use_in_training], epoch, self.config)

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Measure the validation images as they are, and count their codes."""
        self.objective.eval()
        self.use = self._unused("cpu")
        mse, ssim = MSEMetric(), SSIMMetric(spatial_dims=self.axes, data_range=1.0)
        sums = dict.fromkeys(("loss", "reconstruction", "contrast"), 0.0)
        for views in self._validation_batches():
            first, second, target = (view.to(self.run.device) for view in views)
            out: PretrainingOutput = self.objective(first, second, target)
            for metric in (mse, ssim):
                metric(out.images.clamp(0, 1), target)
            for name in sums:
                sums[name] += float(getattr(out, name)) * len(target)
            for use, codes in zip(self.use, out.codes, strict=True):
                use += count_codes(codes, len(use))
        mean = {name: value / len(self.data.validation) for name, value in sums.items()}
        row = {
            "val_loss": mean["loss"],
            "val_mse": mean["reconstruction"],
            "val_psnr_db": -10 * math.log10(max(mse.aggregate().item(), 1e-12)),
            "val_ssim": ssim.aggregate().item(),
            "val_contrast": mean["contrast"],
        }
        for level, use in enumerate(self.use):
            health = codebook_use(use)
            row[f"codes_used{_suffix(level)}"] = float(health.used)
            row[f"perplexity{_suffix(level)}"] = health.perplexity
        return row

    def save_best(self) -> None:
        """Write the weights, the use of codes, and some reconstructions."""
        save_model(self.objective.network, self.run.folder / FILE)
        for level, use in enumerate(self.use):
            np.save(self.run.folder / codebook_use_file(level), use.numpy())
        rows = np.linspace(0, len(self.data.validation) - 1, _SHOWN).astype(int)
        original = self.data.images[self.data.validation[rows]]
        with torch.inference_mode():
            out = self.objective.network(to_network(to_unit(original)).to(self.run.device))
        reconstruction = to_bytes(out.images).reshape(original.shape)
        file = self.run.folder / RECONSTRUCTIONS
        np.savez(file, original=original, reconstruction=reconstruction)

    def summary(self) -> PretrainSummary:
        """Return the figures of the best epoch."""
        best, network = self.best, self.objective.network
        counts = [
            np.load(self.run.folder / codebook_use_file(level))
            for level in range(len(network.quantizers))
        ]
        codebook = [codebook_use(torch.from_numpy(values)) for values in counts]
        nominal, entropy = (
            bits_per_position(alphabets, network.halvings, self.axes)
            for alphabets in ([b.size for b in codebook], [b.perplexity for b in codebook])
        )
        speed = float(np.median([row["images_per_second"] for row in self.history]))
        return PretrainSummary(
            epochs=int(self.history[-1]["epoch"]),
            best_epoch=int(best["epoch"]),
            images_per_second=round(speed, 1),
            val_mse=best["val_mse"],
            val_psnr_db=best["val_psnr_db"],
            val_ssim=best["val_ssim"],
            bits_per_position=nominal,
            entropy_bits_per_position=entropy,
            codebook=codebook,
        )

    def _unused(self, device: torch.device | str) -> list[Tensor]:
        return [
            torch.zeros(quantizer.size, dtype=torch.int64, device=device)
            for quantizer in self.objective.network.quantizers
        ]

    def _validation_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield each validation image as it is, with its swapped copy, and in [0, 1].

        Where acquisitions are not swapped, with a random version, the same in every epoch.
        """
        data, config = self.data, self.config
        generator = torch.Generator().manual_seed(epoch_seed(self.run.seed, 0))
        for start in range(0, len(data.validation), config.batch_size):
            rows = slice(start, start + config.batch_size)
            target = to_unit(data.images[data.validation[rows]])
            if data.swapped_validation is not None:
                other = to_unit(data.swapped_validation[data.swapped_rows[rows]])
            else:
                other = random_versions(target, config.augment, config.augment_strength, generator)
            yield to_network(target), to_network(other), target


def _check_parts(size: int) -> None:
    """Check that the processes can share a batch of ``size`` images by whole groups."""
    number = world_size()
    if number > 1 and size % (number * GROUP):
        raise UserError(
            f"a batch of {size} images cannot be shared by NPROC={number} processes: each takes a "
            f"multiple of {GROUP}; set pretrain.batch_size to a multiple of {number * GROUP} that "
            "the training images fill"
        )


def shuffle_among_subjects(subjects: NDArray[np.str_], seed: int) -> NDArray[np.str_]:
    """Deal the names of subjects with several images anew among all images of such subjects.

    Every subject keeps its number of images. ``subjects`` is (N,), the subject of each image.
    """
    _, subject, number = np.unique(subjects, return_inverse=True, return_counts=True)
    several = number[subject] > 1
    dealt = subjects.copy()
    dealt[several] = np.random.default_rng(seed).permutation(subjects[several])
    return dealt


def share_of_subjects(subjects: NDArray[np.str_], fraction: float, seed: int) -> Rows:
    """Return the rows of a random share of the subjects, at least one; nested for a seed.

    The order of subjects is that of their first rows, so that nothing depends on their names.

    >>> share_of_subjects(np.array(["a", "b", "a", "b"]), 0.5, seed=1).tolist()
    [0, 2]
    """
    _, first, owner = np.unique(subjects, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(np.argsort(first))
    return np.flatnonzero(np.isin(owner, order[: max(1, round(fraction * len(order)))]))


def codebook_use_file(level: int) -> str:
    """Return the name of the file that holds how often each code of a level was used."""
    return f"codebook_use{_suffix(level)}.npy"


def _suffix(level: int) -> str:
    return f"_{level}" if level else ""
