"""All features of a batch of images: those of a trained network, and trivial baselines.

The baselines, which every result is shown beside, are made of the same aligned images and the same
random versions as the network's own features.

References
----------
.. [1] Laws: Rapid texture identification. Image Processing for Missile Guidance, SPIE 238 (1980)
   376.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medvq.method.efficientnet import EfficientNetLite0, folded
from medvq.method.encodings import CodeHistogram, pyramid_grids
from medvq.method.pooling import average_over_cells, resize
from medvq.method.scaling import to_network
from medvq.method.vqvae import VQVAE, Architecture

Floats = NDArray[np.float32]
FeatureSets = dict[str, NDArray[Any]]
"""Arrays (B, width) by the name of the feature set."""
TEXTURES = {"embedding": "texture", "frozen_imagenet": "frozen_imagenet_texture"}
"""Feature sets that have one of their :func:`texture` beside them, and its name."""
_UNTRAINED_SIDE = 128  # of the pictures that the untrained encoder gets, at most
_IMAGENET_SIDE = 224  # of the pictures that EfficientNet-Lite0 was trained on
_PIXELS = {2: 16, 3: 8}  # side of the raw pixels in 2-D and 3-D; 16 did better than 28
_HOG_CELLS, _HOG_DIRECTIONS = 8, 9  # along each axis, and in each; as Dalal and Triggs, CVPR 2005
# Images that a core encodes at once, at most, and their pixels: the feature maps stay in its cache,
# which is more than twice as fast as one batch on all cores. The maps of more pixels also exceed
# what glibc keeps of a thread's freed memory: the kernel clears them anew, half the time at 224 px.
_AT_ONCE, _PIXELS_AT_ONCE = 32, 1 << 18


class FeatureMaps(NamedTuple):
    """What the features of a batch of images are made of, place by place.

    Attributes
    ----------
    codes : int64, one grid (B, *grid) for each level of codes, coarsest first.
    pooled : by feature set, the maps (B, C, *grid) that :func:`pool_to_grid` pools and that are
        then joined.
    """

    codes: list[Tensor]
    pooled: dict[str, list[Tensor]]


class FeatureNetworks(nn.Module):
    """The networks behind the features: the trained one, an untrained one, perhaps a frozen one.

    Parameters
    ----------
    model : the trained network; a shape where there is none, for the untrained one.
    frozen : another encoder of pictures, whose embedding is the set ``frozen_imagenet``.
    with_texture : whether there are the sets of :data:`TEXTURES`, too.
    """

    def __init__(
        self,
        model: VQVAE | Architecture,
        frozen: EfficientNetLite0 | None = None,
        *,
        with_texture: bool = False,
    ) -> None:
        super().__init__()
        self.with_texture = with_texture
        self.model = model if isinstance(model, VQVAE) else None
        self.untrained = untrained_network(model.shape if isinstance(model, VQVAE) else model)
        self.frozen = frozen

    def forward(self, images: Tensor, *, with_untrained: bool = True) -> FeatureMaps:
        """Return the maps of images (B, C, *spatial) in [0, 1]."""
        scaled = to_network(images)
        codes, pooled = ([], {}) if self.model is None else _trained_maps(self.model, scaled)
        if self.frozen is not None:
            pooled["frozen_imagenet"] = self.frozen(resize(scaled, _IMAGENET_SIDE)).embedding
        if self.with_texture:
            textures = {of: name for of, name in TEXTURES.items() if of in pooled}
            pooled |= {name: [texture(one) for one in pooled[of]] for of, name in textures.items()}
        if with_untrained:
            untrained = self.untrained.encoder(_at_most(scaled, _UNTRAINED_SIDE))
            pooled["untrained_encoder"] = untrained.levels[-2:]
        return FeatureMaps(codes, pooled)


def _trained_maps(model: VQVAE, scaled: Tensor) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    encoded = model.features(scaled)
    latents, codes = model.quantize(encoded)
    return codes, {
        "embedding": encoded.embedding,
        "embedding_fine": [encoded.levels[-2]],
        "latent": [encoded.latent],
        "quantized": [model.quantizers[0].decode(codes[0])],
        **{f"latent_{level}": [latents[level]] for level in range(1, len(latents))},
    }


def texture(maps: Tensor) -> Tensor:
    """Return how far every place of maps (B, C, *spatial) is from the mean of its neighbourhood.

    The neighbourhood is 3x3, or 3x3x3, with the place itself. Averaged over a cell, this is a
    texture energy [1]_: how much a map varies there, where its own mean says how high it lies.

    >>> texture(torch.tensor([[[[0.0, 0.0, 3.0]]]]))
    tensor([[[[0.0000, 1.0000, 1.5000]]]])
    """
    maps, axes = maps.float(), maps.ndim - 2
    average = F.avg_pool2d if axes == 2 else F.avg_pool3d

    def with_outside(values: Tensor) -> Tensor:  # which counts as zero
        return average(F.pad(values, [1, 1] * axes), 3, stride=1)

    return (maps - with_outside(maps) / with_outside(torch.ones_like(maps[:1, :1]))).abs()


class FeatureExtractor:
    """Every feature set of a batch of images.

    Parameters
    ----------
    model : a trained network, which is moved to ``device`` and put into eval mode; a shape where
        there is none.
    latent_shape : the grid of its coarsest codes.
    grid : feature maps are pooled to so many cells along each axis.
    threads : in each of them torch computes on one core.
    frozen : another encoder of pictures, whose embedding is the set ``frozen_imagenet``.
    only : names of the baselines that are wanted, which take as long as the network; None for all.
    external : an encoder that MedVQ did not make, whose features are the set ``external``.
    with_texture : whether there are the sets of :data:`TEXTURES`, too.
    """

    def __init__(
        self,
        model: VQVAE | Architecture,
        latent_shape: Sequence[int],
        grid: int,
        device: torch.device,
        threads: Executor,
        frozen: EfficientNetLite0 | None = None,
        only: Collection[str] | None = None,
        external: Callable[[Tensor], Floats] | None = None,
        *,
        with_texture: bool = False,
    ) -> None:
        self.only, self.external = only, external
        self.grid, self.device, self.threads = grid, device, threads
        networks = FeatureNetworks(
            _for_inference(model), folded(frozen) if frozen else None, with_texture=with_texture
        )
        self.networks = networks.to(device).eval()
        self.encodings: dict[str, CodeHistogram] = {}
        if isinstance(model, VQVAE):
            size = model.quantizers[0].size
            for name, grids in (("histogram", (1,)), ("pyramid", pyramid_grids(grid))):
                self.encodings[name] = CodeHistogram(size, latent_shape, grids).fit([])

    def features(self, images: Tensor, frame: Floats | None) -> FeatureSets:
        """Compute the features of images (B, C, *spatial) in [0, 1], and add those of the frame."""
        number = len(images) if self.device.type == "cuda" else images_at_once(images.shape[2:])
        encoding = self.threads.map(self._encode, images.split(number))
        sets: FeatureSets = {}
        if self._wants("raw_pixels"):
            sets["raw_pixels"] = raw_pixels(images).numpy()
        if images.ndim == 4 and self._wants("hog"):
            sets["hog"] = histogram_of_oriented_gradients(images)
        parts = list(encoding)
        sets |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if frame is not None:
            sets["border_only"] = frame
        return sets

    def histograms(self, codes: NDArray[Any]) -> FeatureSets:
        """Return the global histogram and the pyramid of the coarsest codes (B, positions)."""
        return {
            name: encoding.transform(codes).toarray() for name, encoding in self.encodings.items()
        }

    @torch.inference_mode()
    def maps(self, images: Tensor) -> FeatureMaps:
        """Return what the networks make of images (B, C, *spatial) in [0, 1], before pooling."""
        wanted = self._wants("untrained_encoder")
        maps: FeatureMaps = self.networks(images.to(self.device), with_untrained=wanted)
        return maps

    def _wants(self, baseline: str) -> bool:
        return self.only is None or baseline in self.only

    def _encode(self, images: Tensor) -> FeatureSets:
        codes, pooled = self.maps(images)
        sets: FeatureSets = {
            f"codes_{level}": grid.flatten(1).cpu().numpy().astype(np.uint16)
            for level, grid in enumerate(codes)
        }
        for name, maps in pooled.items():
            parts = [pool_to_grid(values, self.grid) for values in maps]
            sets[name] = np.concatenate(parts, axis=1)
        if self.external is not None:
            sets["external"] = self.external(images)
        return sets


def images_at_once(spatial: Sequence[int]) -> int:
    """Return how many images a core encodes at once: a power of two, so that groups of 32 are even.

    >>> images_at_once((64, 64)), images_at_once((128, 128)), images_at_once((224, 224))
    (32, 16, 4)
    """
    fitting = max(1, _PIXELS_AT_ONCE // math.prod(spatial))
    return min(_AT_ONCE, 1 << fitting.bit_length() - 1)


def _for_inference(model: VQVAE | Architecture) -> VQVAE | Architecture:
    """Return the network in eval mode, or a quicker copy of it where there is one."""
    if isinstance(model, Architecture):
        return model
    if not isinstance(model.encoder, EfficientNetLite0):
        return model.eval()
    copied = copy.deepcopy(model).eval()
    copied.encoder = folded(model.encoder)
    return copied


def untrained_network(shape: Architecture) -> VQVAE:
    """Return a network as it is before training, the same one every time.

    A convolutional one, whatever ``shape`` says: random filters of many layers tell little.
    """
    if shape.encoder != "convolutional":
        widths = Architecture().widths[: len(shape.widths)]
        shape = Architecture(shape.spatial_dims, shape.channels, widths=widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQVAE(shape).eval()


def _at_most(images: Tensor, side: int) -> Tensor:
    """Reduce pictures (B, C, S, S) that are larger than ``side``; volumes stay as they are."""
    if images.ndim == 5 or images.shape[-1] <= side:
        return images
    return average_over_cells(images, (side, side))


def pool_to_grid(features: Tensor, grid: int) -> Floats:
    """Average feature maps (B, C, *spatial) over a grid of cells; (B, C * cells)."""
    return pool_cells(features, grid).cpu().numpy()


def pool_cells(features: Tensor, grid: int) -> Tensor:
    """Do as :func:`pool_to_grid` does, in torch."""
    return average_over_cells(features.float(), [grid] * (features.ndim - 2)).flatten(1)


def raw_pixels(images: Tensor) -> Tensor:
    """Average each channel of (B, C, *spatial) to 16x16 pixels, or 8x8x8 voxels, and flatten."""
    axes = images.ndim - 2
    return average_over_cells(images, (_PIXELS[axes],) * axes).flatten(1)


def histogram_of_oriented_gradients(images: Tensor) -> Floats:
    """Return OpenCV's HOG, (B, 1764), of the mean of the channels of pictures (B, C, S, S)."""
    side = images.shape[-1] // _HOG_CELLS
    cell, block, window = ((side * k, side * k) for k in (1, 2, _HOG_CELLS))
    describe = cv2.HOGDescriptor(window, block, cell, cell, _HOG_DIRECTIONS)
    bytes_ = (images.mean(1)[:, : window[0], : window[0]] * 255).round().byte().numpy()
    return np.stack([describe.compute(image) for image in bytes_]).astype(np.float32)
