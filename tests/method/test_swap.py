"""Acquisition swaps: whose position, whose frame, whose grey."""

from itertools import count

import numpy as np
import pytest
import torch
from medvq.method.swap import Kind, swap_acquisition
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]

SIDE = 64
HERE = torch.zeros(1, 4)


def generator(keeps_grey: bool) -> np.random.Generator:
    """One whose first draw leaves the grey curve as it is (three times in ten), or does not."""
    rngs = (np.random.default_rng(seed) for seed in count())
    seeds = (seed for seed, rng in enumerate(rngs) if (rng.random() >= 0.7) == keeps_grey)
    return np.random.default_rng(next(seeds))


def smooth(seed: int) -> Bytes:
    """A picture that has every grey."""
    phase = np.random.default_rng(seed).random(4) * 6
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE * 6
    waves = np.sin(x + phase[0]) + np.cos(y + phase[1]) + np.sin(x + y + phase[2])
    ranks = waves.ravel().argsort().argsort().reshape(1, SIDE, SIDE)
    return (ranks * 256 // SIDE**2).astype(np.uint8)


def radius() -> NDArray[np.float64]:
    """Distance from the middle, in halves of the side; squares are its circles."""
    distance = np.abs((np.arange(SIDE) + 0.5) / SIDE * 2 - 1)
    return np.maximum(distance[None], distance[:, None])


def swap(
    image: Bytes,
    donor: Bytes,
    kind: Kind = "training",
    at: Tensor = HERE,
    donor_at: Tensor = HERE,
    keeps_grey: bool = True,
) -> Bytes:
    return swap_acquisition(image, at, donor, donor_at, kind, generator(keeps_grey))[0]


@pytest.mark.parametrize("keeps_grey", [True, False])
def test_an_image_is_its_own_donor(keeps_grey: bool) -> None:
    image = smooth(0)
    at = torch.tensor([[0.2, -0.1, 0.1, -0.2]])
    swapped = swap(image, image, at=at, donor_at=at, keeps_grey=keeps_grey)
    assert np.abs(swapped.astype(int) - image[0]).max() <= 1


def test_the_frame_is_the_donors_and_the_middle_the_images() -> None:
    image, donor = smooth(1), smooth(2)
    swapped = swap(image, donor)
    inside, outside = radius() < 0.80, radius() > 0.90
    np.testing.assert_array_equal(swapped[inside], image[0][inside])
    np.testing.assert_array_equal(swapped[outside], donor[0][outside])
    weight = np.clip((radius() - 0.8) / 0.1, 0, 1)
    expected = image[0] * (1 - weight) + donor[0] * weight
    assert np.abs(swapped - expected).max() <= 0.5 + 1e-3


def blob(x: float, y: float) -> Bytes:
    """A small bright spot, in coordinates from -1 to 1."""
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    spot = np.exp(-((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * 0.06**2))
    return np.rint(255 * spot).astype(np.uint8)[None]


def position(values: tuple[float, ...]) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def centre(image: Bytes) -> tuple[float, float]:
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    weight = image / image.sum(dtype=float)
    return float((weight.sum(0) * axis).sum()), float((weight.sum(1) * axis).sum())


@pytest.mark.parametrize(
    ("at", "donor_at", "where"),
    [
        # Template coordinates are (spot - shift) / scale; the donor shows them at scale * u + shift
        ((0, 0, 0.2, 0), (0, 0, -0.1, 0.1), (-0.1 + 0.1, 0.1 - 0.2)),
        ((np.log(1.5), 0, 0, 0), (0, np.log(1.5), 0, 0), (0.3 / 1.5, -0.2 * 1.5)),
        ((np.log(1.25), 0, -0.3, 0), (np.log(0.9), 0, 0.1, 0.3), (0.48 * 0.9 + 0.1, 0.1)),
    ],
)
def test_the_donors_position_is_taken(
    at: tuple[float, ...], donor_at: tuple[float, ...], where: tuple[float, float]
) -> None:
    black = np.zeros((1, SIDE, SIDE), np.uint8)
    swapped = swap(blob(0.3, -0.2), black, at=position(at), donor_at=position(donor_at))
    assert centre(swapped) == pytest.approx(where, abs=0.01)


def test_the_grey_curve_goes_towards_the_donors() -> None:
    image = smooth(3)
    dark = (image // 4).astype(np.uint8)
    swapped = swap(image, dark, keeps_grey=False)[radius() < 0.8].astype(float)
    middle = image[0][radius() < 0.8].astype(float)
    assert middle.mean() / 4 < swapped.mean() < middle.mean() - 5
    order = middle.argsort(kind="stable")
    assert (np.diff(swapped[order]) >= -1).all()


def test_validation_takes_the_donors_mean_and_deviation_up_to_a_gamma() -> None:
    image, donor = smooth(4), (60 + smooth(5) // 3).astype(np.uint8)
    frame = np.clip((radius() - 0.74) / 0.06, 0, 1)
    blended = image[0] * (1 - frame) + donor[0] * frame
    moved = (blended - blended.mean()) / blended.std() * donor.std() + donor.mean()
    base = np.log(moved / 255)
    gammas = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        seen = swap_acquisition(image, HERE, donor, HERE, "validation", rng)[0]
        # The marker covers some pixels, never most.
        low, gamma, high = np.quantile(np.log(seen / 255) / base, (0.2, 0.5, 0.8))
        assert high - low < 0.02
        gammas.append(gamma)
    assert np.exp(-0.3) - 0.01 < min(gammas) < 0.85
    assert 1.15 < max(gammas) < np.exp(0.3) + 0.01


def test_validation_pastes_a_bright_marker_near_the_border() -> None:
    black = np.zeros((30, SIDE, SIDE), np.uint8)
    here = HERE.expand(30, -1)
    rng = np.random.default_rng(0)
    swapped = swap_acquisition(black, here, black, here, "validation", rng)
    assert (swapped.max((1, 2)) >= 120).mean() > 0.9
    assert (swapped[:, radius() > 0.65].max(1) >= 120).mean() > 0.9
    assert (swapped > 0).mean((1, 2)).max() < 0.1
    assert not swap_acquisition(black, here, black, here, "training", rng).any()


def test_the_generator_decides_and_kinds_differ() -> None:
    image, donor = smooth(6), smooth(7)
    kinds: tuple[Kind, ...] = ("training", "validation")
    made = {
        (kind, seed, again): swap_acquisition(
            image, HERE, donor, HERE, kind, np.random.default_rng(seed)
        ).tobytes()
        for kind in kinds
        for seed in range(3)
        for again in (False, True)
    }
    assert all(made[kind, seed, False] == made[kind, seed, True] for kind, seed, _ in made)
    assert all(made["training", s, False] != made["validation", s, False] for s in range(3))
    assert len({made["validation", seed, False] for seed in range(3)}) == 3


def test_each_image_has_its_own_donor() -> None:
    images, donors = np.concatenate([smooth(1)] * 2), np.concatenate([smooth(2), smooth(3)])
    here = HERE.expand(2, -1)
    together = swap_acquisition(images, here, donors, here, "training", generator(True))
    outside = radius() > 0.90
    np.testing.assert_array_equal(together[0][outside], donors[0][outside])
    alone = swap(images[1:], donors[1:])
    assert np.corrcoef(together[1].ravel(), alone.ravel())[0, 1] > 0.95
