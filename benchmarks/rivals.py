"""Networks trained on labelled images, by the best recipes that we found for them.

They see affine and photometric augmentation as pretraining does, and acquisition-swapped copies as
often as pretraining's second views are. A part of the labelled subjects is held out for the number
of epochs, by the score that chooses the probe's C (three parts on images as they are, one part on
swapped ones), and for calibration. Then a new network is trained as long on all labels, as the
probe is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from medvq.config import PretrainConfig, TrainingConfig
from medvq.device import computes_in_bfloat16
from medvq.method.augmentation import (
    apply_photometric,
    photometric_parameter_count,
    photometric_parameters,
    random_versions,
)
from medvq.method.probe import calibrate, grouped_folds, selection_score
from medvq.method.scaling import to_network, to_unit
from medvq.method.targets import Binary
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage.start import load_start
from medvq.training.batches import epoch_seed
from medvq.training.loop import epoch_count, patience
from monai.networks.nets import resnet18
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
_TARGET = Binary()
_BATCH = 256
"""Images that a network judges at once."""


class Recipe(TrainingConfig):
    """How a network is trained: AdamW, a cosine after a warm-up, as many epochs as are best.

    There are at least 18 epochs and as many as make 600 steps; training stops once half of them
    bring nothing better.
    """

    size: int = 128
    """Side that images are averaged down to, in pixels; that of MedVQ's images."""
    folds: int = 5
    """One of so many parts of the labelled subjects is held out."""
    batch_size: int = 32
    augment_strength: float = 0.6
    """Of the affine augmentation: that of the probe's random versions, which validation prefers to
    the milder ones of pretraining."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 30


class LabelledImages(NamedTuple):
    """Images whose label a network may see.

    Attributes
    ----------
    images : bytes (N, S, S).
    copies : bytes (copies, N, S, S), acquisition-swapped, of the kind for training; may be none.
    swapped : bytes (N, S, S), swapped in the kind that no training sees; None where none are.
    truth, subjects : (N,).
    """

    images: Bytes
    copies: Bytes
    swapped: Bytes | None
    truth: NDArray[np.int64]
    subjects: NDArray[np.str_]


class Classifier(NamedTuple):
    """A trained network, a calibrated line from logits to probabilities, and a threshold.

    ``epochs`` says how many were tried on held-out images, ``best`` how many it was trained for.
    """

    network: nn.Module
    size: int
    calibration: LogisticRegression
    threshold: float
    epochs: int
    best: int

    def predict(self, images: Bytes) -> Floats:
        """Return probabilities of class 1 (N,) for images (N, S, S)."""
        logits = _logits(self.network, images, self.size)
        return np.asarray(self.calibration.predict_proba(logits[:, None])[:, 1])


def resnet() -> nn.Module:
    """Return MONAI's ResNet-18, with a stem of stride 2, as it is before training."""
    network: nn.Module = resnet18(
        spatial_dims=2, n_input_channels=1, num_classes=2, conv1_t_stride=2
    )
    return network


class PretrainedClassifier(nn.Module):
    """An encoder of the product with weights to start from, averaged over places, and a layer."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        network = VQVAE(Architecture.from_config(config))
        load_start(network, config.start_from)
        self.encoder = network.encoder
        self.head = nn.Linear(config.level_widths[-1], 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, 2) of images in the network's range."""
        logits: Tensor = self.head(self.encoder(images).levels[-1].mean((2, 3)))
        return logits


def efficientnet() -> nn.Module:
    """Return the first half of EfficientNet-Lite0 with the weights of ImageNet."""
    return PretrainedClassifier(PretrainConfig(encoder="efficientnet_lite0", start_from="imagenet"))


@dataclass
class Training:
    """The training of a network on labelled images, augmented as pretraining's ``views`` are.

    Attributes
    ----------
    new_network : returns the network as it is before training.
    """

    new_network: Callable[[], nn.Module]
    labelled: LabelledImages
    recipe: Recipe
    views: PretrainConfig
    seed: int
    device: str = "cpu"

    def fit(self) -> Classifier:
        """Find the number of epochs on images held out, and train as long on all."""
        recipe, truth = self.recipe, self.labelled.truth
        fitted_on, held_out = grouped_folds(truth, self.labelled.subjects, recipe.folds)[0]
        batches = max(1, len(fitted_on) // recipe.batch_size)
        epochs = epoch_count(recipe, batches)
        highest, best, logits = -math.inf, 0, None
        for epoch, network in self.epochs(fitted_on, epochs):
            judged = self.judge(network, held_out)
            score = selection_score(_TARGET, truth[held_out], *judged)
            if score > highest:
                highest, best, logits = score, epoch, judged
            elif epoch - best >= patience(recipe, batches):
                break
        assert logits is not None
        tried = epoch
        trained = self.epochs(np.arange(len(truth)), epochs)
        _, network = next(islice(trained, best - 1, None))
        calibration = self._calibrate(truth[held_out], *logits)
        return Classifier(network, recipe.size, calibration, _TARGET.threshold(truth), tried, best)

    def epochs(self, rows: Rows, number: int) -> Iterator[tuple[int, nn.Module]]:
        """Train a new network on some images; yield it after each epoch, counted from 1."""
        recipe = self.recipe
        torch.manual_seed(self.seed)
        network = self.new_network().to(self.device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        size = min(recipe.batch_size, len(rows))
        batches = len(rows) // size
        optimizer = torch.optim.AdamW(
            network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        steps = number * batches
        warmup = min(recipe.warmup_steps, steps // 2)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, warmup, steps)
        )
        for epoch in range(number):
            network.train()
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
            order = torch.randperm(len(rows), generator=generator).numpy()
            for batch in range(batches):
                chosen = rows[order[batch * size : (batch + 1) * size]]
                images = self.augment(chosen, generator).to(self.device)
                self._step(network, optimizer, chosen, images)
                schedule.step()
            yield epoch + 1, network

    def _step(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows, images: Tensor
    ) -> None:
        truth = torch.from_numpy(self.labelled.truth[rows]).to(self.device)
        mixed = computes_in_bfloat16(images.device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
            logits = network(images)
        F.cross_entropy(logits.float(), truth).backward()
        optimizer.step()

    def augment(self, rows: Rows, generator: torch.Generator) -> Tensor:
        """Return random versions of images in the network's range, (B, 1, size, size)."""
        labelled, config = self.labelled, self.views.augment
        images = np.array(labelled.images[rows])
        unit = torch.rand((len(rows), 2), generator=generator).numpy()
        take = np.flatnonzero(unit[:, 1] < self.views.contrast.swapped_share)
        if len(labelled.copies) and len(take):
            copies = (unit[take, 0] * len(labelled.copies)).astype(int)
            images[take] = labelled.copies[copies, rows[take]]
        resized = _resize(images, self.recipe.size)
        moved = random_versions(resized, config, self.recipe.augment_strength, generator)
        if not self.views.photometric:
            return to_network(moved)
        numbers = photometric_parameter_count(2, config.cut_outs)
        unit_of_views = torch.rand((len(moved), numbers), generator=generator)
        parameters = photometric_parameters(unit_of_views, config, 1, moved.shape[2:])
        noise = torch.randn(moved.shape, generator=generator)
        return to_network(apply_photometric(moved, parameters, noise, config))

    def judge(self, network: nn.Module, rows: Rows) -> tuple[Floats, Floats | None]:
        """Return the logits of images as they are, and of their swapped copies."""
        clean = _logits(network, self.labelled.images[rows], self.recipe.size)
        if self.labelled.swapped is None:
            return clean, None
        return clean, _logits(network, self.labelled.swapped[rows], self.recipe.size)

    def _calibrate(
        self, truth: NDArray[np.int64], clean: Floats, swapped: Floats | None
    ) -> LogisticRegression:
        """Return the probe's own calibration, of a logit that is as yet the network's."""
        calibration = LogisticRegression()
        calibration.classes_ = np.array([0, 1])
        calibration.coef_, calibration.intercept_ = np.ones((1, 1)), np.zeros(1)
        calibrate(_TARGET, calibration, truth, clean, swapped)
        return calibration


def learning_rate_factor(step: int, warmup: int, steps: int) -> float:
    """Return what the learning rate is multiplied by: a linear warm-up, then half a cosine."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def _resize(images: Bytes, size: int) -> Tensor:
    return F.interpolate(to_unit(images), (size, size), mode="area")


@torch.inference_mode()
def _logits(network: nn.Module, images: Bytes, size: int) -> Floats:
    """Return how far the logit of class 1 is above that of class 0, (N,)."""
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for start in range(0, len(images), _BATCH):
        batch = to_network(_resize(images[start : start + _BATCH], size)).to(device)
        logits = network(batch).double()
        parts.append((logits[:, 1] - logits[:, 0]).cpu().numpy())
    return np.concatenate(parts)
