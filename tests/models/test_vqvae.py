"""The autoencoder: 2-D within 3-D, halvings, its two halves, and that it can learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.vqvae import VQVAE, ResidualBlock, use_of_codes


@pytest.fixture
def flat() -> VQVAE:
    """A small 2-D network with lived-in batch norms and codebook."""
    torch.manual_seed(0)
    network = VQVAE(
        channels=2, widths=(6, 8), residual_levels=1, codebook_size=16, codebook_dim=4, decay=0.5
    )
    with torch.no_grad():
        for _ in range(40):
            network(torch.randn(16, 2, 16, 16))
    return network.eval()


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
def solid(flat: VQVAE) -> VQVAE:
    """The 3-D network that is ``flat`` in every slice."""
    network = VQVAE(
        spatial_dims=3,
        channels=2,
        widths=(6, 8),
        residual_levels=1,
        codebook_size=16,
        codebook_dim=4,
    )
    transposed = {
        f"{name}.weight" for name, m in flat.named_modules() if isinstance(m, nn.ConvTranspose2d)
    }
    network.load_state_dict(
        {
            name: deepened(tensor, transposed=name in transposed) if tensor.ndim == 4 else tensor
            for name, tensor in flat.state_dict().items()
        }
    )
    return network.eval()


def test_three_dimensions_hold_two(flat: VQVAE, solid: VQVAE) -> None:
    images = torch.randn(3, 2, 16, 24)
    volumes = images[:, :, None].expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        two, three = flat(images), solid(volumes)
    assert len(two.codes[0].unique()) > 4
    pairs = [
        *zip(two.encoded.levels, three.encoded.levels, strict=True),
        (two.encoded.latent, three.encoded.latent),
        (two.images, three.images),
    ]
    for plane, volume in pairs:
        torch.testing.assert_close(
            volume, plane[:, :, None].expand_as(volume), rtol=1e-5, atol=1e-5
        )
    assert three.images.shape == volumes.shape
    for volume, plane in zip(three.codes, two.codes, strict=True):
        assert torch.equal(volume, plane[:, None])
    torch.testing.assert_close(three.loss, two.loss)


def test_every_level_halves_the_image(flat: VQVAE) -> None:
    images = torch.randn(1, 2, 64, 64)
    with torch.no_grad():
        here = flat.features(images)
        there = flat.features(images.roll((8, 4), (2, 3)))
    for depth, (a, b) in enumerate(zip(here.levels, there.levels, strict=True), start=1):
        side = 64 // 2**depth
        assert a.shape[2:] == (side, side)
        moved = a.roll((8 // 2**depth, 4 // 2**depth), (2, 3))
        # What comes round the edge, and zeros beyond it, reach three pixels of the deepest map.
        inside = slice(side // 4, -side // 4)
        torch.testing.assert_close(
            moved[..., inside, inside], b[..., inside, inside], rtol=1e-4, atol=1e-5
        )


def test_decode_of_encode_is_the_reconstruction(flat: VQVAE) -> None:
    images = torch.randn(4, 2, 16, 16)
    with torch.no_grad():
        out, codes = flat(images), flat.encode(images)
        torch.testing.assert_close(flat.decode(codes), out.images, rtol=1e-5, atol=1e-5)
    assert torch.equal(codes, out.codes)


def test_encode_does_not_depend_on_autocast_in_the_search(flat: VQVAE) -> None:
    images = torch.randn(16, 2, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flat.encode(images), flat(images).codes)


def test_a_residual_block_adds_to_what_it_is_given() -> None:
    torch.manual_seed(0)
    block, features = ResidualBlock(2, 3, 4).eval(), torch.randn(2, 3, 5, 5)
    last = block.branch[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 0.5)
    given = features.clone()
    torch.testing.assert_close(block(features), given + 0.5)


def test_the_gradient_reaches_every_parameter(flat: VQVAE) -> None:
    out = flat.train()(torch.randn(8, 2, 16, 16))
    (out.images.square().mean() + out.loss).backward()
    for name, parameter in flat.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_learns_four_images_by_heart() -> None:
    torch.manual_seed(0)
    coarse = torch.randn(4, 1, 4, 4)
    images = F.interpolate(coarse, 16, mode="bilinear")
    network = VQVAE(widths=(16, 16), decoder_widths=(12, 20), codebook_size=64, codebook_dim=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(100):
        out = network(images)
        error = F.mse_loss(out.images, images)
        optimizer.zero_grad()
        (error + out.loss).backward()
        optimizer.step()
    assert error < 0.1 * images.var()


@pytest.mark.parametrize("spatial_dims", [1, 4])
def test_other_dimensions_are_refused(spatial_dims: int) -> None:
    with pytest.raises(ValueError, match=f"spatial_dims={spatial_dims}"):
        VQVAE(spatial_dims=spatial_dims)


def test_use_of_codes_counts_them() -> None:
    assert use_of_codes(torch.tensor([[[0, 3], [3, 1]]]), 5).tolist() == [1, 1, 0, 2, 0]
