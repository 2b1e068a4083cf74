"""Random versions: what each change does, by value."""

import math

import pytest
import torch
import torch.nn.functional as F
from medvq.config import AugmentConfig
from medvq.method.augmentation import (
    PhotometricParameters,
    apply_affine,
    apply_photometric,
    photometric_parameter_count,
    photometric_parameters,
    random_versions,
    sample_affine,
)
from torch import Tensor

NOTHING = AugmentConfig(rotation_degrees=0, log_scale=0, shift=0, log_gamma=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(9))


def sample_photometric(
    shape: tuple[int, ...], config: AugmentConfig, chance: torch.Generator
) -> PhotometricParameters:
    number, channels, *spatial = shape
    width = photometric_parameter_count(len(spatial), config.cut_outs)
    unit = torch.rand((number, width), generator=chance)
    return photometric_parameters(unit, config, channels, spatial)


def augmented(images: Tensor, **options: float) -> Tensor:
    config, chance = AugmentConfig(**options), generator()
    drawn = sample_photometric(images.shape, config, chance)
    return apply_photometric(images, drawn, torch.randn(images.shape, generator=chance), config)


@pytest.mark.parametrize("shape", [(3, 1, 12, 12), (3, 3, 12, 10), (3, 1, 8, 12, 10)])
def test_no_strength_changes_nothing(shape: tuple[int, ...]) -> None:
    images = pictures(*shape)
    wild = AugmentConfig(flip=True, smallest_crop=0.1)
    torch.testing.assert_close(
        random_versions(images, wild, 0.0, generator()), images, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("shape", [(40, 3, 12, 12), (40, 1, 8, 12, 12)])
def test_about_half_are_mirrored_left_to_right(shape: tuple[int, ...]) -> None:
    images = pictures(*shape)
    flipping = NOTHING.model_copy(update={"flip": True})
    made = random_versions(images, flipping, 1.0, generator())
    mirrored = torch.tensor(
        [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(made, images, strict=True)]
    )
    same = torch.tensor(
        [torch.allclose(a, b, atol=1e-5) for a, b in zip(made, images, strict=True)]
    )
    assert bool((mirrored ^ same).all())
    assert 8 < int(mirrored.sum()) < 32


@pytest.mark.parametrize("axes", [2, 3])
def test_crops_lie_inside_and_are_no_smaller_than_allowed(axes: int) -> None:
    cropping = NOTHING.model_copy(update={"smallest_crop": 0.3})
    changes = sample_affine(4000, cropping, 1.0, generator(), axes)
    first = 1 if axes == 2 else 3
    sides = changes[:, first : first + axes].exp()
    shifts = changes[:, first + axes : first + 2 * axes]
    assert bool((sides + shifts.abs() <= 1 + 1e-6).all())
    share = sides.prod(1)
    # Clamping a side that stretches beyond the image can only make the crop smaller, by a little.
    assert 0.25 < float(share.min()) < 0.32
    assert float(share.max()) > 0.97
    assert float(share.mean()) == pytest.approx(0.65, abs=0.04)
    assert bool((changes[:, -1] == 1).all())


def test_a_quarter_turn_about_the_long_axis_of_a_volume() -> None:
    volume = pictures(1, 1, 6, 6, 6)
    parameters = torch.zeros(1, 11)
    parameters[0, 2], parameters[0, -1] = math.pi / 2, 1  # about z: x to y
    turned = apply_affine(volume, parameters)
    expected = [torch.rot90(volume, k, (-2, -1)) for k in (1, 3)]
    assert any(torch.allclose(turned, e, atol=1e-4) for e in expected)


@pytest.mark.parametrize("spatial", [(8, 8), (8, 8, 8)])
def test_a_smaller_version_shows_the_whole_image(spatial: tuple[int, ...]) -> None:
    # Bilinear sampling at the centres of 2x2 cells is their mean.
    images, axes = pictures(3, 2, *spatial), len(spatial)
    parameters = sample_affine(3, NOTHING, 1.0, generator(), axes)
    half = apply_affine(images, parameters, [side // 2 for side in spatial])
    expected = F.interpolate(images, scale_factor=0.5, mode="area")
    torch.testing.assert_close(half, expected, rtol=1e-4, atol=1e-5)


def test_grey_stays_grey_and_luminance_stays_where_colours_change() -> None:
    grey = pictures(20, 1, 6, 6).expand(-1, 3, -1, -1)
    made = augmented(grey, cut_outs=0, colour=1.0)
    without = augmented(grey, cut_outs=0)
    assert made.shape == without.shape
    noise = 0.05 * 5
    assert float((made - made.mean(1, keepdim=True)).abs().max()) < noise


@pytest.mark.parametrize("shape", [(3, 1, 16, 24), (3, 3, 18, 18), (2, 1, 10, 20, 20)])
def test_cut_outs_are_boxes_of_the_mean(shape: tuple[int, ...]) -> None:
    images = pictures(*shape)
    drawn = sample_photometric(images.shape, AugmentConfig(cut_outs=3), generator())
    noise = torch.randn(images.shape, generator=generator())
    made, expected = (
        apply_photometric(
            images, drawn._replace(corners=drawn.corners[:, :number]), noise, AugmentConfig()
        )
        for number in (3, 0)
    )
    for image, corners, one in zip(images, drawn.corners.tolist(), expected, strict=True):
        for corner in corners:
            box = [
                slice(c, c + round(0.22 * s)) for c, s in zip(corner, image.shape[1:], strict=True)
            ]
            one[(slice(None), *box)] = image.mean()
    torch.testing.assert_close(made, expected)


def test_photometric_augmentation_against_a_slow_reference() -> None:
    images = pictures(2, 1, 16, 16)
    drawn = sample_photometric(images.shape, AugmentConfig(cut_outs=0), generator())
    noise = torch.randn(images.shape, generator=generator(1))
    for image, made, one in zip(
        images,
        apply_photometric(images, drawn, noise, AugmentConfig()),
        range(len(images)),
        strict=True,
    ):
        mean = image.mean()
        plain = (image - mean) * drawn.contrast[one] + mean + drawn.brightness[one]
        blurred = torch.stack(
            [
                plain[0, [min(max(y + i, 0), 15) for i in range(-2, 3)]][
                    :, [min(max(x + i, 0), 15) for i in range(-2, 3)]
                ].mean()
                for y in range(16)
                for x in range(16)
            ]
        ).reshape(1, 16, 16)
        expected = plain + drawn.sharpness[one] * (blurred - plain) + drawn.noise[one] * noise[one]
        torch.testing.assert_close(made, expected)


def test_cut_outs_reach_every_place_alike() -> None:
    corners = sample_photometric((6000, 1, 8, 8), AugmentConfig(cut_outs=2), generator()).corners
    # Boxes of 2 of 8 pixels have 7 places along each axis.
    used = torch.stack([(corners == place).float().mean((0, 1)) for place in range(7)])
    torch.testing.assert_close(used, torch.full((7, 2), 1 / 7), atol=0.015, rtol=0)


def version(images: Tensor, strength: float, seed: int = 0, **ranges: float) -> Tensor:
    return random_versions(images, AugmentConfig(**ranges), strength, generator(seed))


def test_versions_stay_in_range_and_differ_from_each_other() -> None:
    versions = version(pictures(1, 1, 12, 12).expand(6, -1, -1, -1), 2.0)
    assert versions.min() >= 0
    assert versions.max() <= 1
    assert torch.pdist(versions.flatten(1)).min() > 0.1


def test_versions_come_from_the_generator_alone() -> None:
    images = pictures(6, 1, 12, 12)
    first = version(images, 1.0, seed=1)
    torch.manual_seed(5)
    assert torch.equal(first, version(images, 1.0, seed=1))
    assert not torch.equal(first, version(images, 1.0, seed=2))


def test_gamma_alone_is_one_exponent_for_each_image() -> None:
    images = pictures(6, 1, 12, 12).clamp(0.1, 0.9)
    versions = version(images, 1.0, log_scale=0.0, shift=0.0, rotation_degrees=0.0)
    exponents = (versions.log() / images.log()).flatten(1)
    torch.testing.assert_close(
        exponents, exponents[:, :1].expand_as(exponents), rtol=1e-3, atol=1e-3
    )
    assert (exponents[:, 0].log().abs() <= 0.3 + 1e-3).all()
    assert len(exponents[:, 0].unique()) == 6
