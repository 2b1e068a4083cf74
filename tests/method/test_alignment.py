"""Registration to the mean image: its group, its sampling, and what it finds back."""

import itertools
from collections.abc import Iterator
from math import log

import numpy as np
import pytest
import torch
from medvq.config import AlignmentConfig
from medvq.method.alignment import (
    Alignment,
    compose,
    invert,
    mean_position,
    sampling_grid,
    search_cost,
    search_layers,
    warp,
)
from numpy.typing import NDArray
from torch import Tensor

Reals = NDArray[np.float64]

FOUND = 0.02
# Of each blob the centre, the grey and the width; (x, y, z).
BLOBS = (
    ((-0.32, -0.02, 0.1), 0.9, (0.13, 0.24, 0.2)),
    ((0.3, 0.04, -0.15), 0.75, (0.12, 0.2, 0.15)),
    ((0.02, 0.05, 0.35), 0.4, (0.06, 0.36, 0.1)),
    ((-0.1, -0.34, -0.3), -0.3, (0.2, 0.06, 0.12)),
    ((0.12, 0.36, 0.2), 0.5, (0.24, 0.05, 0.2)),
)


def axis(side: int) -> Tensor:
    return (torch.arange(side) + 0.5) / side * 2 - 1


def picture(positions: Tensor, side: int) -> Tensor:
    """Blobs on a wide dark margin, standing at each position; drawn, so never interpolated."""
    n = positions.shape[1] // 2
    # Reading at the position p must show the blobs where they are, so p^-1 takes points to them.
    undo = invert(positions)
    coordinates = [
        undo[:, i, None].exp() * axis(side)[None] + undo[:, n + i, None] for i in range(n)
    ]
    drawn = torch.full((len(positions), *[side] * n), 0.1)
    for centre, grey, width in BLOBS:
        # Volumes are coarse, and what is finer than their blur cannot be measured.
        where, wide = centre[:n], [w * (1.0, 1.5)[n - 2] for w in width[:n]]
        for_axes = [
            torch.exp(-((c - m) ** 2) / (2 * w**2))
            for c, m, w in zip(coordinates, where, wide, strict=True)
        ]
        # Tensors are indexed (z, y, x), positions (x, y, z).
        letters = "xyz"[:n]
        spec = ",".join(f"b{a}" for a in letters) + "->b" + letters[::-1]
        drawn = drawn + 0.6 * grey * torch.einsum(spec, *for_axes)
    return drawn.clamp(0, 1)[:, None]


def positions(count: int, spread: float, axes: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 2 * axes, generator=generator) * 2 - 1) * spread


def training_set(side: int = 64, axes: int = 2, count: int = 48) -> Tensor:
    images = picture(positions(count, 0.12, axes), side)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + 0.02 * noise).clamp(0, 1)


@pytest.fixture(scope="module")
def fitted() -> Alignment:
    # The pull towards the mean is a wish of ours and would bias what the search finds.
    return Alignment.fit(training_set(), AlignmentConfig(pull=0.0))


@pytest.mark.parametrize("axes", [2, 3])
def test_positions_form_a_group(axes: int) -> None:
    a, b, c = (positions(20, 0.5, axes, seed).double() for seed in (1, 2, 3))
    nothing = torch.zeros_like(a)
    close = {"atol": 1e-12, "rtol": 0.0}
    torch.testing.assert_close(compose(compose(a, b), c), compose(a, compose(b, c)), **close)
    for one, other in ((a, invert(a)), (invert(a), a)):
        torch.testing.assert_close(compose(one, other), nothing, **close)
    torch.testing.assert_close(compose(a, nothing), a, **close)
    torch.testing.assert_close(compose(nothing, a), a, **close)
    torch.testing.assert_close(invert(invert(a)), a, **close)


def test_composition_is_that_of_the_maps() -> None:
    outer, inner = positions(2, 0.5, seed=4).double()[:, None]
    u = torch.tensor([0.3, -0.7], dtype=torch.float64)

    def read(p: Tensor, point: Tensor) -> Tensor:
        return p[0, :2].exp() * point + p[0, 2:]

    torch.testing.assert_close(read(compose(outer, inner), u), read(outer, read(inner, u)))
    torch.testing.assert_close(read(invert(outer), read(outer, u)), u)


def test_by_hand_twice_as_wide_and_shifted() -> None:
    twice = torch.tensor([[log(2), 0.0, 0.5, 0.0]])
    torch.testing.assert_close(compose(twice, twice), torch.tensor([[log(4), 0, 1.5, 0]]))
    torch.testing.assert_close(invert(twice), torch.tensor([[-log(2), 0, -0.25, 0]]))
    grid = sampling_grid(twice, (1, 2))
    torch.testing.assert_close(grid, torch.tensor([[[[-0.5, 0.0], [1.5, 0.0]]]]))


@pytest.mark.parametrize("shape", [(5, 9), (4, 5, 6)])
def test_the_zero_position_changes_nothing(shape: tuple[int, ...]) -> None:
    images = torch.rand((3, 2, *shape), generator=torch.Generator().manual_seed(0))
    nowhere = torch.zeros(3, 2 * len(shape))
    torch.testing.assert_close(warp(images, nowhere, shape), images, atol=1e-5, rtol=0)


def slowly(image: Reals, position: Reals, size: tuple[int, ...]) -> Reals:
    """(Tri)linear sampling, pixel by pixel, the border repeated."""
    n = image.ndim
    result = np.zeros(size)
    for index in np.ndindex(*size):
        corners: list[list[tuple[int, float]]] = []
        for a, (i, side, length) in enumerate(zip(index, size, image.shape, strict=True)):
            x = n - 1 - a
            u = (2 * i + 1) / side - 1
            at = (np.exp(position[x]) * u + position[n + x] + 1) / 2 * length - 0.5
            at = min(max(at, 0.0), length - 1.0)
            low = int(np.floor(at))
            corners.append([(low, 1 - at + low), (min(low + 1, length - 1), at - low)])
        for corner in itertools.product(*corners):
            weight = float(np.prod([w for _, w in corner]))
            result[index] += weight * image[tuple(i for i, _ in corner)]
    return result


@pytest.mark.parametrize(("shape", "size"), [((6, 9), (5, 4)), ((4, 6, 5), (3, 4, 6))])
def test_sampling_against_a_slow_reference(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    images = torch.rand((4, 1, *shape), generator=torch.Generator().manual_seed(2)).double()
    at = positions(4, 0.5, len(shape), seed=5).double()
    pairs = zip(images, at, strict=True)
    expected = [slowly(image[0].numpy(), p.numpy(), size) for image, p in pairs]
    np.testing.assert_allclose(warp(images, at, size)[:, 0].numpy(), expected, atol=1e-12)


def known(axes: int) -> Iterator[tuple[float, ...]]:
    yield (0.15,) * axes + (0.0,) * axes
    yield (0.0,) * axes + (0.12,) * axes
    yield (0.12, -0.1, 0.08)[:axes] + (-0.1, 0.08, 0.05)[:axes]
    yield (-0.1, 0.05, -0.08)[:axes] + (0.1, -0.12, 0.06)[:axes]


def assert_found(fitted: Alignment, side: int, axes: int) -> None:
    put = torch.tensor([(0.0,) * 2 * axes, *known(axes)])
    start = positions(3, 0.05, axes, seed=7)
    moves, starts = put.repeat_interleave(len(start), 0), start.repeat(len(put), 1)
    placed = fitted.register(picture(compose(moves, starts), side))
    assert not placed.failed.any()
    expected = compose(moves, placed.positions[: len(start)].repeat(len(put), 1))
    torch.testing.assert_close(placed.positions, expected, atol=FOUND, rtol=0)


def test_known_scales_and_shifts_are_found(fitted: Alignment) -> None:
    assert_found(fitted, side=64, axes=2)
    config = AlignmentConfig(size=24, pull=0.0, rounds=2)
    assert_found(Alignment.fit(training_set(24, 3, 8), config), side=24, axes=3)


def test_bytes_are_placed_as_their_greys_are(fitted: Alignment) -> None:
    images = picture(positions(4, 0.1, seed=8), 64)
    as_bytes = (images * 255).round().byte()
    torch.testing.assert_close(
        fitted.register(as_bytes).positions, fitted.register(images).positions, atol=2e-3, rtol=0
    )


def test_what_was_aligned_once_is_not_moved_again(fitted: Alignment) -> None:
    images = training_set()
    cut = warp(images, fitted.register(images).positions, (64, 64))
    config = fitted.config.model_copy(update={"zoom": 0.0})
    again = Alignment(fitted.template, config).register(cut)
    assert again.positions.abs().max() < FOUND


def test_aligned_images_agree(fitted: Alignment) -> None:
    images = picture(positions(16, 0.12, seed=9), 64)
    aligned = warp(images, fitted.register(images).positions, (64, 64))
    assert aligned.std(0).mean() < 0.1 * images.std(0).mean()


def test_positions_centre_on_the_zoom(fitted: Alignment) -> None:
    found = fitted.register(training_set()).positions
    expected = torch.tensor([-fitted.config.zoom, -fitted.config.zoom, 0.0, 0.0])
    torch.testing.assert_close(found.mean(0), expected, atol=FOUND, rtol=0)
    torch.testing.assert_close(mean_position(fitted.config).float(), expected)


def test_an_image_alone_is_placed_exactly_as_in_a_batch(fitted: Alignment) -> None:
    images = training_set()[:12]
    together = fitted.register(images)
    alone = [fitted.register(image[None]) for image in images]
    for name in ("positions", "correlation"):
        apart = torch.cat([getattr(placed, name) for placed in alone])
        torch.testing.assert_close(apart, getattr(together, name), atol=0, rtol=0)


def test_a_template_without_content_finds_nothing() -> None:
    nothing = Alignment(torch.full((1, 1, 56, 56), 0.5), AlignmentConfig())
    placed = nothing.register(training_set()[:3])
    assert placed.failed.all()
    assert torch.isfinite(placed.correlation).all()


@pytest.mark.parametrize("axes", [2, 3])
def test_the_cost_and_its_slopes_are_those_of_centred_unit_images(axes: int) -> None:
    config, side = AlignmentConfig(pull=0.03), 12
    images = picture(positions(5, 0.1, axes, seed=3), side).double()
    at, centre = positions(4, 0.2, axes, seed=4).double(), mean_position(config, axes)
    layers = search_layers(images[1:])
    found = search_cost(images[:1], config)(layers, at)

    def unit(values: Reals) -> Reals:
        return (values - values.mean()) / np.linalg.norm(values - values.mean())

    target, size = unit(images[0].flatten().numpy()), (side,) * axes
    points = sampling_grid(torch.zeros(1, 2 * axes).double(), size)[0].flatten(0, -2).T.numpy()
    for row, p in enumerate(at):
        image, *by_shift = warp(layers[row : row + 1], p[None], size)[0].flatten(1).numpy()
        value, norm = unit(image), np.linalg.norm(image - image.mean())
        by_scale = [a * b * s.exp().item() for a, b, s in zip(by_shift, points, p, strict=False)]
        slopes = np.array([(s - s.mean()) / norm for s in (*by_scale, *by_shift)])
        slopes -= np.outer(slopes @ value, value)  # the unit image keeps its norm
        ncc, away = np.corrcoef(image, target)[0, 1], (p - centre).numpy()
        expected = (
            2 - 2 * ncc + config.pull * (away**2).sum(),
            ncc,
            slopes @ target - config.pull * away,
            slopes @ slopes.T + config.pull * np.eye(2 * axes),
        )
        for ours, slow in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours[row], slow, atol=1e-10)


def test_what_resembles_nothing_falls_back_to_the_mean_position(fitted: Alignment) -> None:
    noise = torch.rand((5, 1, 64, 64), generator=torch.Generator().manual_seed(3))
    nothing = torch.stack([torch.zeros(1, 64, 64), torch.full((1, 64, 64), 0.5)])
    good = picture(torch.zeros(1, 4), 64)
    placed = fitted.register(torch.cat([noise, nothing, 1 - good, good]))
    assert placed.failed.tolist() == [True] * 8 + [False]
    assert torch.isfinite(placed.correlation).all()
    fallen = mean_position(fitted.config).float().expand(8, -1)
    torch.testing.assert_close(placed.positions[:8], fallen, atol=0, rtol=0)
    assert placed.correlation[8] > 0.9
    assert (placed.correlation[:8] < fitted.config.min_correlation).all()


def test_positions_are_differentiable() -> None:
    images = picture(torch.zeros(2, 4), 32).double()
    at = positions(2, 0.1, seed=6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: warp(images, p, (5, 5)), (at,), eps=1e-7, atol=1e-4)
