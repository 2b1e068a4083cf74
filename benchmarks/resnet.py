"""A ResNet-18 trained from scratch on labelled images, by the best recipe that we found for it.

It sees affine and photometric augmentation as pretraining does, and acquisition-swapped copies as
often as pretraining's second views are. A part of the labelled subjects is held out for early
stopping, by the score that chooses the probe's C (three parts on images as they are, one part on
swapped ones), and for calibration.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
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
    """How the network is trained: AdamW, a cosine after a warm-up, the best epoch kept.

    There are at least 18 epochs and as many as make 600 steps; training stops once half of them
    bring nothing better.
    """

    size: int = 64
    """Side that images are averaged down to, in pixels."""
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

    ``epochs`` says how many were trained, ``best`` which one was kept.
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


@dataclass
class Training:
    """The training of a ResNet-18 on labelled images, augmented as pretraining's ``views`` are."""

    labelled: LabelledImages
    recipe: Recipe
    views: PretrainConfig
    seed: int
    device: str = "cpu"

    def fit(self) -> Classifier:
        """Train on a part of the images; stop and calibrate by the rest."""
        recipe, truth = self.recipe, self.labelled.truth
        fitted_on, held_out = grouped_folds(truth, self.labelled.subjects, recipe.folds)[0]
        torch.manual_seed(self.seed)
        network = resnet18(spatial_dims=2, n_input_channels=1, num_classes=2, conv1_t_stride=2)
        network = network.to(self.device, memory_format=torch.channels_last)
        size = min(recipe.batch_size, len(fitted_on))
        batches = len(fitted_on) // size
        epochs = epoch_count(recipe, batches)
        optimizer = torch.optim.AdamW(
            network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        steps = epochs * batches
        warmup = min(recipe.warmup_steps, steps // 2)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, warmup, steps)
        )
        highest, weights, best = -math.inf, network.state_dict(), 0
        for epoch in range(epochs):
            network.train()
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
            order = torch.randperm(len(fitted_on), generator=generator).numpy()
            for number in range(batches):
                rows = order[number * size : (number + 1) * size]
                images = self.augment(fitted_on[rows], generator).to(self.device)
                self._step(network, optimizer, fitted_on[rows], images)
                schedule.step()
            score = selection_score(_TARGET, truth[held_out], *self.judge(network, held_out))
            if score > highest:
                highest, weights, best = score, copy.deepcopy(network.state_dict()), epoch
            elif epoch - best >= patience(recipe, batches):
                break
        network.load_state_dict(weights)
        calibration = self._calibrate(network, held_out)
        threshold = _TARGET.threshold(truth)
        return Classifier(network, recipe.size, calibration, threshold, epoch + 1, best + 1)

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

    def _calibrate(self, network: nn.Module, rows: Rows) -> LogisticRegression:
        """Return the probe's own calibration, of a logit that is as yet the network's."""
        calibration = LogisticRegression()
        calibration.classes_ = np.array([0, 1])
        calibration.coef_, calibration.intercept_ = np.ones((1, 1)), np.zeros(1)
        calibrate(_TARGET, calibration, self.labelled.truth[rows], *self.judge(network, rows))
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
