"""Acquisition swaps: the thorax of one image as if it had been taken on another's equipment.

An image is given a donor's position and scale, outer frame and part of its grey curve; the donor is
drawn at random, whatever its label. Equipment and geometry then say nothing about the label, which
makes swapped images an honest validation and a demanding second view for the contrastive loss.

There are two kinds. Training never sees the kind that validation is made of: another frame width,
another way of changing greys, and a pasted marker.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medvq.method.alignment import compose, invert, sampling_grid

Kind = Literal["training", "validation"]
Bytes = NDArray[np.uint8]

# Where the donor's frame begins, and over how much it is blended in, in halves of the side.
_FRAME = {"training": (0.80, 0.10), "validation": (0.74, 0.06)}
_GREY_CURVE_SHARE = 0.7  # of training copies, whose greys move towards the donor's
_LOG_GAMMA = 0.3  # largest change of gamma of validation copies, to either side


def swap_acquisition(
    images: Bytes,
    positions: Tensor,
    donors: Bytes,
    donor_positions: Tensor,
    kind: Kind,
    rng: np.random.Generator,
) -> Bytes:
    """Give every image its donor's position, frame and grey.

    Images are (B, side, side) as read, before any equalisation, to be preprocessed like any other
    afterwards; positions are (B, 4), in the template.
    """
    side = images.shape[-1]
    tensor = torch.from_numpy(images)[:, None].float()
    frame = torch.from_numpy(donors)[:, None].float()
    # Point u of the donor is donor^-1(u) of the template, where the image is read.
    grid = sampling_grid(compose(positions, invert(donor_positions)), (side, side))
    moved = F.grid_sample(tensor, grid, padding_mode="reflection", align_corners=False)
    weight = _frame_weight(side, *_FRAME[kind])
    blended = (moved * (1 - weight) + frame * weight + 0.5).clamp(0, 255).byte()[:, 0].numpy()
    change_grey = _towards_grey_curve if kind == "training" else _to_mean_and_gamma
    swapped = np.stack([change_grey(a, b, rng) for a, b in zip(blended, donors, strict=True)])
    if kind == "validation":
        for image in swapped:
            _paste_marker(image, rng)
    return swapped


def _frame_weight(side: int, start: float, width: float) -> Tensor:
    """Return 0 inside and 1 in the frame, (side, side)."""
    distance = ((torch.arange(side) + 0.5) / side * 2 - 1).abs()
    radius = torch.maximum(distance[None], distance[:, None])
    return ((radius - start) / width).clamp(0, 1)


def _towards_grey_curve(image: Bytes, donor: Bytes, rng: np.random.Generator) -> Bytes:
    """Move seven in ten images a random part of the way to the donor's histogram."""
    if rng.random() >= _GREY_CURVE_SHARE:
        return image
    shares = np.bincount(image.ravel(), minlength=256).cumsum() / image.size
    counts = np.bincount(donor.ravel(), minlength=256)
    donor_shares = counts.cumsum() / donor.size
    grey = np.arange(256)
    # Greys that the donor lacks would be ties, of which interpolation takes the brightest.
    present = np.flatnonzero(counts)
    share = rng.random()
    curve = (1 - share) * grey + share * np.interp(shares, donor_shares[present], present)
    return np.rint(curve).astype(np.uint8)[image]


def _to_mean_and_gamma(image: Bytes, donor: Bytes, rng: np.random.Generator) -> Bytes:
    """Give the image the donor's mean and deviation, then a random gamma."""
    spread = donor.std() / max(float(image.std()), 1.0)
    curve = (np.arange(256) - image.mean()) * spread + donor.mean()
    curve = np.clip(curve / 255.0, 0.0, 1.0) ** np.exp(rng.uniform(-_LOG_GAMMA, _LOG_GAMMA))
    return np.asarray(np.rint(curve * 255.0), np.uint8)[image]


def _paste_marker(image: Bytes, rng: np.random.Generator) -> None:
    """Paste a bright side marker somewhere near the border, in place."""
    side = image.shape[0]
    scale = side / 224 * rng.uniform(0.5, 0.9)
    along, across = rng.uniform(0.05, 0.85), rng.uniform(0.04, 0.10)
    near_top = rng.random() < 0.7
    x, y = (along, across + 0.06) if near_top else (across, along + 0.06)
    if rng.random() < 0.5:
        x, y = (x, 1 - across) if near_top else (0.94 - across, y)
    text = str(rng.choice(["L", "R", "AP", "PORT"]))
    grey = int(rng.integers(190, 256))
    origin = (int(x * side), int(y * side))
    cv2.putText(image, text, origin, cv2.FONT_HERSHEY_DUPLEX, scale, grey, 1, cv2.LINE_AA)
