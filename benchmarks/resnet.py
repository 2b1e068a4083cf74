"""A ResNet-18 trained from scratch on labelled images, by the best recipe that we found for it.

It sees random versions and photometric augmentation as pretraining does, and acquisition-swapped
copies as often as pretraining's second views are. A part of the labelled subjects is held out for
early stopping, by the score that chooses the probe's C (three parts on images as they are, one part
on swapped ones), and for calibration.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

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

BATCH = 256
"""Images that the network judges at once."""
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
_TARGET = Binary()


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


@dataclass(frozen=True)
class LabelledImages:
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


@dataclass(frozen=True)
class Classifier:
    """A trained network and what calibrates it.

    Attributes
    ----------
    network : from images to logits of both classes.
    calibration : from the difference of the logits to a probability.
    threshold : the prevalence among the labels, as for the probe.
    epochs, best : how many were trained, and which one was kept.
    """

    network: nn.Module
    recipe: Recipe
    calibration: LogisticRegression
    threshold: float
    epochs: int
    best: int

    def predict(self, images: Bytes) -> Floats:
        """Return probabilities of class 1 (N,) for images (N, S, S)."""
        logits = _logits(self.network, images, self.recipe)
        return np.asarray(self.calibration.predict_proba(logits[:, None])[:, 1])


def train(
    labelled: LabelledImages,
    recipe: Recipe,
    views: PretrainConfig,
    seed: int,
    device: str = "cpu",
) -> Classifier:
    """Train a ResNet-18 on a part of the labelled images; stop and calibrate it by the rest.

    Parameters
    ----------
    views : how pretraining augments its views; the network sees images augmented alike.

    Raises
    ------
    UserError
        A class has too few subjects to hold any out.
    """
    fitted_on, held_out = grouped_folds(labelled.truth, labelled.subjects, recipe.folds)[0]
    torch.manual_seed(seed)
    network = resnet18(spatial_dims=2, n_input_channels=1, num_classes=2, conv1_t_stride=2)
    network = network.to(device, memory_format=torch.channels_last)
    batches = len(fitted_on) // min(recipe.batch_size, len(fitted_on))
    epochs = epoch_count(recipe, batches)
    optimizer = torch.optim.AdamW(
        network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    steps = epochs * batches
    warmup = min(recipe.warmup_steps, steps // 2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, warmup, steps)
    )
    best, weights, best_epoch = -math.inf, network.state_dict(), 0
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        _train_epoch(network, optimizer, schedule, labelled, fitted_on, recipe, views, generator)
        clean, swapped = _held_out(network, labelled, held_out, recipe)
        score = selection_score(_TARGET, labelled.truth[held_out], clean, swapped)
        if score > best:
            best, weights, best_epoch = score, copy.deepcopy(network.state_dict()), epoch
        elif epoch - best_epoch >= patience(recipe, batches):
            break
    network.load_state_dict(weights)
    calibration = _calibrated(network, labelled, held_out, recipe)
    threshold = _TARGET.threshold(labelled.truth)
    return Classifier(network, recipe, calibration, threshold, epoch + 1, best_epoch + 1)


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    labelled: LabelledImages,
    rows: Rows,
    recipe: Recipe,
    views: PretrainConfig,
    generator: torch.Generator,
) -> None:
    network.train()
    device = next(network.parameters()).device
    mixed = computes_in_bfloat16(device)
    size = min(recipe.batch_size, len(rows))
    order = torch.randperm(len(rows), generator=generator).numpy()
    for number in range(len(rows) // size):
        chosen = rows[order[number * size : (number + 1) * size]]
        images = augmented(labelled, chosen, recipe, views, generator).to(device)
        truth = torch.from_numpy(labelled.truth[chosen]).to(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            logits = network(images)
        F.cross_entropy(logits.float(), truth).backward()
        optimizer.step()
        schedule.step()


def learning_rate_factor(step: int, warmup: int, steps: int) -> float:
    """Return what the learning rate is multiplied by: a linear warm-up, then half a cosine."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def augmented(
    labelled: LabelledImages,
    rows: Rows,
    recipe: Recipe,
    views: PretrainConfig,
    generator: torch.Generator,
) -> Tensor:
    """Return random versions of images in the network's range, (B, 1, size, size)."""
    images = np.array(labelled.images[rows])
    unit = torch.rand((len(rows), 2), generator=generator).numpy()
    take = np.flatnonzero(unit[:, 1] < views.contrast.swapped_share)
    if len(labelled.copies) and len(take):
        copies = (unit[take, 0] * len(labelled.copies)).astype(int)
        images[take] = labelled.copies[copies, rows[take]]
    moved = random_versions(
        _resized(images, recipe), views.augment, recipe.augment_strength, generator
    )
    if not views.photometric:
        return to_network(moved)
    number = photometric_parameter_count(2, views.augment.cut_outs)
    numbers = torch.rand((len(moved), number), generator=generator)
    parameters = photometric_parameters(numbers, views.augment, 1, moved.shape[2:])
    noise = torch.randn(moved.shape, generator=generator)
    return to_network(apply_photometric(moved, parameters, noise, views.augment))


def _calibrated(
    network: nn.Module, labelled: LabelledImages, rows: Rows, recipe: Recipe
) -> LogisticRegression:
    """Return the probe's own calibration, of a logit that is as yet the network's."""
    calibration = LogisticRegression()
    calibration.classes_ = np.array([0, 1])
    calibration.coef_, calibration.intercept_ = np.ones((1, 1)), np.zeros(1)
    clean, swapped = _held_out(network, labelled, rows, recipe)
    calibrate(_TARGET, calibration, labelled.truth[rows], clean, swapped)
    return calibration


def _held_out(
    network: nn.Module, labelled: LabelledImages, rows: Rows, recipe: Recipe
) -> tuple[Floats, Floats | None]:
    """Return the logits of held-out images, as they are and swapped."""
    clean = _logits(network, labelled.images[rows], recipe)
    if labelled.swapped is None:
        return clean, None
    return clean, _logits(network, labelled.swapped[rows], recipe)


def _resized(images: Bytes, recipe: Recipe) -> Tensor:
    return F.interpolate(to_unit(images), (recipe.size, recipe.size), mode="area")


@torch.inference_mode()
def _logits(network: nn.Module, images: Bytes, recipe: Recipe) -> Floats:
    """Return how far the logit of class 1 is above that of class 0, (N,)."""
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for start in range(0, len(images), BATCH):
        batch = to_network(_resized(images[start : start + BATCH], recipe)).to(device)
        logits = network(batch).double()
        parts.append((logits[:, 1] - logits[:, 0]).cpu().numpy())
    return np.concatenate(parts)
