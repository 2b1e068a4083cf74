"""The autoencoder: 2-D within 3-D, halvings, its two halves, and that it can learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories.learning import learn_by_heart
from medvq.method.vqvae import VQVAE, Architecture, ResidualBlock
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor, nn

SHAPE = Architecture(
    channels=2, widths=(6, 8), residual_levels=1, codebook_size=16, codebook_dim=4, decay=0.5
)


def used(**options: Any) -> VQVAE:
    """A small network whose batch norms and codebooks have processed some images."""
    torch.manual_seed(0)
    network = VQVAE(replace(SHAPE, **options))
    with torch.no_grad():
        for _ in range(40):
            network(torch.randn(16, 2, 16, 16))
    return network.eval()


@pytest.fixture(params=[(), ((1, 8),)], ids=["flat", "hierarchical"])
def plane(request: pytest.FixtureRequest) -> VQVAE:
    return used(finer=request.param)


@pytest.fixture
def two() -> VQVAE:
    """Codes of two levels: 4x4 of a 16-pixel image, and 8x8."""
    return used(finer=((1, 8),))


def deepened(kernel: Tensor, *, transposed: bool) -> Tensor:
    """The 3-D kernel that does to a volume constant in depth what ``kernel`` does to its slices."""
    size = kernel.shape[-1]
    # A transposed convolution of stride 2 reaches every depth once by its two inner slices.
    inner = {1: [0], 3: [1], 4: [1, 2] if transposed else [1]}[size]
    volume = torch.zeros(*kernel.shape[:2], size, size, size)
    for depth in inner:
        volume[:, :, depth] = kernel
    return volume


@pytest.fixture
def solid(plane: VQVAE) -> VQVAE:
    """The 3-D network that is ``plane`` in every slice."""
    finer = [
        (halvings, quantizer.size)
        for halvings, quantizer in zip(plane.halvings, plane.quantizers, strict=True)
    ]
    network = VQVAE(replace(plane.shape, spatial_dims=3, finer=finer[1:]))
    transposed = {
        f"{name}.weight" for name, m in plane.named_modules() if isinstance(m, nn.ConvTranspose2d)
    }
    network.load_state_dict(
        {
            name: deepened(tensor, transposed=name in transposed) if tensor.ndim == 4 else tensor
            for name, tensor in plane.state_dict().items()
        }
    )
    return network.eval()


def test_three_dimensions_hold_two(plane: VQVAE, solid: VQVAE) -> None:
    images = torch.randn(3, 2, 16, 24)
    volumes = images[:, :, None].expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        two, three = plane(images), solid(volumes)
    assert len(two.codes[0].unique()) > 4
    pairs = [
        *zip(two.encoded.levels, three.encoded.levels, strict=True),
        *zip(two.latents, three.latents, strict=True),
        (two.images, three.images),
    ]
    for slices, volume in pairs:
        torch.testing.assert_close(
            volume, slices[:, :, None].expand_as(volume), rtol=1e-5, atol=1e-5
        )
    assert three.images.shape == volumes.shape
    for codes, of_slices in zip(three.codes, two.codes, strict=True):
        assert torch.equal(codes, of_slices[:, None].expand_as(codes))
    torch.testing.assert_close(three.loss, two.loss)


def test_every_level_halves_the_image(plane: VQVAE) -> None:
    images = torch.randn(1, 2, 64, 64)
    with torch.no_grad():
        here = plane.features(images)
        there = plane.features(images.roll((8, 4), (2, 3)))
    for depth, (a, b) in enumerate(zip(here.levels, there.levels, strict=True), start=1):
        side = 64 // 2**depth
        assert a.shape[2:] == (side, side)
        moved = a.roll((8 // 2**depth, 4 // 2**depth), (2, 3))
        # What comes round the edge, and zeros beyond it, reach three pixels of the deepest map.
        inside = slice(side // 4, -side // 4)
        torch.testing.assert_close(
            moved[..., inside, inside], b[..., inside, inside], rtol=1e-4, atol=1e-5
        )


def test_decode_of_encode_is_the_reconstruction(plane: VQVAE) -> None:
    images = torch.randn(4, 2, 16, 16)
    with torch.no_grad():
        out, codes = plane(images), plane.encode(images)
        torch.testing.assert_close(plane.decode(*codes), out.images, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(codes, out.codes, strict=True))


def test_encode_does_not_depend_on_autocast_in_the_search(plane: VQVAE) -> None:
    images = torch.randn(16, 2, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pairs = zip(plane.encode(images), plane(images).codes, strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_a_residual_block_adds_to_its_input() -> None:
    torch.manual_seed(0)
    block, features = ResidualBlock(2, 3, True).eval(), torch.randn(2, 3, 5, 5)
    last = block.branch[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 0.5)
    given = features.clone()
    torch.testing.assert_close(block(features), given + 0.5)


def test_the_gradient_reaches_every_parameter(plane: VQVAE) -> None:
    out = plane.train()(torch.randn(8, 2, 16, 16))
    (out.images.square().mean() + out.loss).backward()
    for name, parameter in plane.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("finer", "batch_norm"), [((), True), (((1, 32),), False)])
def test_it_learns_four_images_by_heart(finer: tuple[Any, ...], batch_norm: bool) -> None:
    torch.manual_seed(0)
    coarse = torch.randn(4, 1, 4, 4)
    images = F.interpolate(coarse, 16, mode="bilinear")
    shape = Architecture(
        widths=(16, 16), decoder_widths=(12, 20), codebook_size=64, codebook_dim=8,
        finer=finer, batch_norm=batch_norm,
    )  # fmt: skip
    assert learn_by_heart(VQVAE(shape), images, 100) < 0.1


def test_one_level_is_the_flat_model() -> None:
    flat = used()
    (level,) = flat.code_levels
    images = torch.randn(4, 2, 16, 16)
    with torch.no_grad():
        out = flat(images)
        latent = level.project(flat.encoder(images).levels[-1])
        quantized = level.quantizer(latent)
        torch.testing.assert_close(out.images, level.decoder(quantized.values))
    assert torch.equal(out.latents[0], latent)
    assert torch.equal(out.codes[0], quantized.codes)
    assert torch.equal(out.loss, quantized.loss)


def test_finer_latents_depend_on_coarser_codes(two: VQVAE) -> None:
    images = torch.randn(4, 2, 16, 16)
    coarse, fine = two.code_levels
    with torch.no_grad():
        before = two(images)
        coarse.quantizer.codebook += 1.0
        after = two(images)
        features = after.encoded.levels[0]
        decoded = coarse.decode(coarse.quantizer.decode(after.codes[0]), [])
        torch.testing.assert_close(after.latents[1], fine.latent(features, [decoded]))
    assert torch.equal(features, before.encoded.levels[0])
    assert torch.equal(after.latents[0], before.latents[0])
    changed = (after.latents[1] - before.latents[1]).abs().amax(1)
    assert (changed > 1e-3).all()


@pytest.mark.parametrize("level", [0, 1])
def test_every_level_is_decoded(two: VQVAE, level: int) -> None:
    codes = two.encode(torch.randn(2, 2, 16, 16))
    other = [grid.clone() for grid in codes]
    size = two.quantizers[level].size
    other[level][0, 1, 2] = (other[level][0, 1, 2] + size // 2) % size
    with torch.no_grad():
        change = (two.decode(*other) - two.decode(*codes)).abs().amax(1)
    # One code is about the pixels below it, and those its kernels reach.
    below = 16 // codes[level].shape[1]
    assert (change[0, below : 2 * below, 2 * below : 3 * below] > 0).any()
    assert (change[1] == 0).all()


def test_the_loss_is_that_of_all_levels(two: VQVAE) -> None:
    out = two(torch.randn(4, 2, 16, 16))
    away = [
        F.mse_loss(latent, quantizer.decode(codes))
        for latent, quantizer, codes in zip(out.latents, two.quantizers, out.codes, strict=True)
    ]
    torch.testing.assert_close(out.loss, 0.25 * (away[0] + away[1]))


def as_rows(maps: Tensor) -> NDArray[np.float64]:
    return maps.movedim(1, -1).flatten(0, -2).double().numpy()


@pytest.mark.parametrize("dim", [4, 12], ids=["narrower", "wider"])
def test_fitted_codes_are_of_principal_components(dim: int) -> None:
    torch.manual_seed(0)
    network = VQVAE(replace(SHAPE, codebook_dim=dim)).eval()
    images = [torch.randn(8, 2, 16, 16) for _ in range(3)]
    network.fit_codes(lambda: images, seed=0)
    with torch.inference_mode():
        encoded = [network.features(batch) for batch in images]
        maps = as_rows(torch.cat([one.levels[-1] for one in encoded]))
        latent = as_rows(torch.cat([one.latent for one in encoded]))
    kept = min(dim, 8)
    expected = PCA(kept).fit_transform(maps)
    signs = np.sign((expected * latent[:, :kept]).sum(0))
    np.testing.assert_allclose(latent[:, :kept], expected * signs, atol=1e-5)
    np.testing.assert_array_equal(latent[:, kept:], 0)
    # The codebook, of as many codes as there are, is fitted to them.
    codes = torch.cat([network.encode(batch)[0] for batch in images])
    assert codes.unique().numel() == SHAPE.codebook_size


def test_the_codes_of_every_level_are_fitted_to_what_coarser_ones_leave() -> None:
    torch.manual_seed(0)
    network = VQVAE(replace(SHAPE, finer=((1, 8),))).eval()
    images = torch.randn(24, 2, 16, 16)
    network.fit_codes(lambda: images.split(8), seed=0)
    latents, codes = network.quantize(network.features(images))
    for latent, level, size in zip(latents, codes, (16, 8), strict=True):
        covariance = np.cov(as_rows(latent.detach()), rowvar=False)
        spread = np.diagonal(covariance)
        np.testing.assert_allclose(covariance, np.diag(spread), atol=1e-5 * spread[0])
        assert spread.tolist() == sorted(spread, reverse=True)
        assert level.unique().numel() == size


@pytest.mark.parametrize("halvings", [0, 2, 3])
def test_levels_that_are_not_finer_are_refused(halvings: int) -> None:
    with pytest.raises(ValueError, match="must fall"):
        VQVAE(Architecture(widths=(4, 4), finer=[(halvings, 8)]))


@pytest.mark.parametrize("spatial_dims", [1, 4])
def test_other_dimensions_are_refused(spatial_dims: int) -> None:
    with pytest.raises(ValueError, match=f"spatial_dims={spatial_dims}"):
        VQVAE(Architecture(spatial_dims=spatial_dims))
