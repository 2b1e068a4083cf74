"""EfficientNet-Lite0 as an encoder: its arithmetic, its published weights, and what is frozen."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from medvq.config import PretrainConfig
from medvq.method.collectives import BatchNorm2d
from medvq.method.efficientnet import (
    ALL_LEVELS,
    EfficientNetLite0,
    _SameConvolution,
    folded,
    from_published,
)
from medvq.method.scaling import to_network
from medvq.method.vqvae import VQVAE, Architecture
from torch import Tensor

# Of the sixteen blocks: repeats, kernel, stride of the first, expansion, channels (the paper's).
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
ENDS = (0, 2, 4, 10, 15)  # the block at the end of each level
SHOWN = (7, 10, 15)  # the blocks that say what is shown


def published(seed: int = 0) -> dict[str, Tensor]:
    """Return random weights by the published names, of colour images."""
    torch.manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def add(conv: str, norm: str, *shape: int) -> None:
        weights[f"{conv}.weight"] = torch.randn(shape) / (shape[1] * shape[2] * shape[3]) ** 0.5
        for name in ("weight", "running_var"):
            weights[f"{norm}.{name}"] = torch.rand(shape[0]) + 0.5
        for name in ("bias", "running_mean"):
            weights[f"{norm}.{name}"] = torch.randn(shape[0]) / 4
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    before, number = 32, 0
    for repeats, kernel, _, expansion, after in STAGES:
        for _ in range(repeats):
            name, hidden = f"_blocks.{number}", before * expansion
            if expansion > 1:
                add(f"{name}._expand_conv", f"{name}._bn0", hidden, before, 1, 1)
            add(f"{name}._depthwise_conv", f"{name}._bn1", hidden, 1, kernel, kernel)
            add(f"{name}._project_conv", f"{name}._bn2", after, hidden, 1, 1)
            before, number = after, number + 1
    return weights


def reference(weights: Mapping[str, Tensor], images: Tensor) -> list[Tensor]:
    """Compute every block's map of colour images in [0, 1] from the published names, plainly."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        size = kernel.shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        groups = 1 if kernel.shape[1] > 1 or x.shape[1] == 1 else x.shape[1]
        return F.conv2d(x, kernel, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)

    x, number, maps = (images * 255 - 127) / 128, 0, []
    x = norm(conv(x, "_conv_stem", 2), "_bn0").clamp(0, 6)
    for repeats, _, stride, expansion, _ in STAGES:
        for repeat in range(repeats):
            name, before = f"_blocks.{number}", x
            if expansion > 1:
                x = norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
            x = conv(x, f"{name}._depthwise_conv", stride if repeat == 0 else 1)
            x = norm(x, f"{name}._bn1").clamp(0, 6)
            x = norm(conv(x, f"{name}._project_conv"), f"{name}._bn2")
            x = x + before if repeat else x
            maps.append(x)
            number += 1
    return maps


def encoder(channels: int) -> EfficientNetLite0:
    network = EfficientNetLite0(channels, ALL_LEVELS).eval()
    network.load_state_dict(from_published(published(), channels))
    return network


@pytest.mark.parametrize("side", [64, 48, 80])
def test_the_levels_are_those_of_the_published_network(side: int) -> None:
    images = torch.rand(2, 3, side, side)
    maps = reference(published(), images)
    levels, embedding = encoder(3)(to_network(images))
    for level, end in zip(levels, ENDS, strict=True):
        torch.testing.assert_close(level, maps[end], rtol=1e-4, atol=1e-4)
    for shown, block in zip(embedding, SHOWN, strict=True):
        torch.testing.assert_close(shown, maps[block], rtol=1e-4, atol=1e-4)


def test_the_encoder_of_a_vqvae_is_the_first_half_of_the_network() -> None:
    whole, half = encoder(1), EfficientNetLite0(1).eval()
    state = whole.state_dict()
    half.load_state_dict({name: state[name] for name in half.state_dict()})
    images = torch.rand(1, 1, 32, 32)
    for maps, of_half in zip(whole(images), half(images), strict=True):
        for one, other in zip(maps, of_half, strict=False):  # the whole has more
            assert torch.equal(one, other)
    assert (len(half(images).levels), len(half(images).embedding)) == (4, 2)


def test_a_grey_image_counts_as_three_equal_channels() -> None:
    images = torch.rand(2, 1, 32, 32)
    grey, colour = encoder(1)(to_network(images)), encoder(3)(to_network(images).repeat(1, 3, 1, 1))
    for one, other in zip(grey.levels, colour.levels, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_levels_have_the_resolutions_and_widths_of_the_configuration() -> None:
    config = PretrainConfig(encoder="efficientnet_lite0")
    levels, _ = EfficientNetLite0(1).eval()(torch.zeros(1, 1, 64, 64))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (width, 64 >> halvings, 64 >> halvings)
        for halvings, width in enumerate(config.level_widths, 1)
    ]


def test_gradients_in_bfloat16_are_those_of_a_plain_convolution() -> None:
    layer = _SameConvolution(6, 6, 5, 1, groups=6)
    images, gradient = (torch.randn(3, 6, 9, 11).bfloat16().float() for _ in range(2))
    layer.weight.data = layer.weight.data.bfloat16().float()

    def gradients(*, enabled: bool) -> list[Tensor]:
        inputs = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = layer(inputs)
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        return list(torch.autograd.grad(out, (inputs, layer.weight), gradient.to(out.dtype)))

    pairs = zip(gradients(enabled=True), gradients(enabled=False), strict=True)
    for rounded, exact in pairs:
        assert (rounded - exact).norm() < 0.01 * exact.norm()


def test_every_published_tensor_of_the_first_blocks_is_used() -> None:
    kept = [name for name in published() if _block(name) <= ENDS[-1]]
    assert len(from_published(published(), 1)) == len(kept)


def _block(name: str) -> int:
    found = re.match(r"_blocks\.(\d+)\.", name)
    return int(found[1]) if found else -1


@pytest.mark.parametrize("encoder_name", ["efficientnet_lite0", "convolutional"])
@pytest.mark.parametrize("levels", [0, 2, 4])
def test_frozen_levels_keep_their_weights_and_statistics(encoder_name: str, levels: int) -> None:
    torch.manual_seed(0)
    config = PretrainConfig(encoder=encoder_name, codebook_size=4, codebook_dim=4)
    network = VQVAE(Architecture.from_config(config))
    network.freeze(levels)
    network.train()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        network(torch.randn(4, 1, 32, 32)).images.square().mean().backward()
        optimiser.step()
    frozen = tuple(["stem."] * (levels > 0) + [f"levels.{level}." for level in range(levels)])
    for name, value in network.encoder.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed != name.startswith(frozen or ("nothing",)), name


def test_folded_normalisation_changes_nothing_but_the_rounding() -> None:
    torch.manual_seed(0)
    encoder = EfficientNetLite0(1, ALL_LEVELS)
    encoder(torch.randn(8, 1, 64, 64))  # statistics other than those it is made with
    encoder.eval()
    images = torch.rand(4, 1, 64, 64) * 2 - 1
    with torch.inference_mode():
        expected, levels = encoder(images).levels, folded(encoder)(images).levels
    assert not any(isinstance(module, BatchNorm2d) for module in folded(encoder).modules())
    for one, other in zip(expected, levels, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.std()))
    assert isinstance(encoder.stem[1], BatchNorm2d)
