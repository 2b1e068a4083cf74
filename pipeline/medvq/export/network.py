"""One network from prepared images to the features of a probe, and from them to its prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from torch import Tensor, nn

from medvq.errors import UserError
from medvq.explain.evidence import LinearProbe
from medvq.method.efficientnet import ALL_LEVELS, EfficientNetLite0
from medvq.method.encodings import CodeHistogram, pyramid_grids
from medvq.method.features import TEXTURES, FeatureMaps, FeatureNetworks, pool_cells, raw_pixels
from medvq.method.vqvae import VQVAE, Architecture

HISTOGRAMS = ("histogram", "pyramid")


class FeatureNetwork(nn.Module):
    """Prepared images (B, C, *spatial) in [0, 1] to feature sets, joined: (B, width).

    All parameters are values of JSON, so that the configuration of a bundle can hold them.

    Parameters
    ----------
    architecture : of the trained network, see :class:`~medvq.method.vqvae.Architecture`.
    features : names of feature sets.
    grid : cells along each axis that maps are pooled to.
    image_shape : of the images.
    frozen : whether a frozen network of ImageNet is there, too.

    Examples
    --------
    >>> shape = {"widths": [8, 8], "codebook_size": 4, "codebook_dim": 2}
    >>> network = FeatureNetwork(shape, ["embedding", "histogram"], 2, [16, 16]).eval()
    >>> network(torch.zeros(1, 1, 16, 16)).shape
    torch.Size([1, 36])
    """

    def __init__(
        self,
        architecture: dict[str, Any],
        features: Sequence[str],
        grid: int,
        image_shape: Sequence[int],
        frozen: bool = False,
    ) -> None:
        super().__init__()
        shape = Architecture(**architecture)
        network = EfficientNetLite0(shape.channels, ALL_LEVELS) if frozen else None
        textured = not set(TEXTURES.values()).isdisjoint(features)
        self.networks = FeatureNetworks(VQVAE(shape), network, with_texture=textured)
        self.names, self.grid = tuple(features), grid
        latent = [side // 2 ** len(shape.widths) for side in image_shape]
        for name in set(HISTOGRAMS) & set(features):
            cells = _shares(latent, (1,) if name == "histogram" else pyramid_grids(grid))
            self.register_buffer(f"cells_{name}", cells, persistent=False)

    @property
    def model(self) -> VQVAE:
        """The trained network."""
        model = self.networks.model
        assert model is not None
        return model

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images."""
        maps: FeatureMaps = self.networks(images)
        return torch.cat([self._set(name, images, maps) for name in self.names], 1)

    def _set(self, name: str, images: Tensor, maps: FeatureMaps) -> Tensor:
        if name == "raw_pixels":
            return raw_pixels(images)
        if name in HISTOGRAMS:
            size = self.model.quantizers[0].size
            used = F.one_hot(maps.codes[0].flatten(1), size).float()
            shares: Tensor = getattr(self, f"cells_{name}") @ used
            return shares.flatten(1).sqrt()
        if name not in maps.pooled:
            raise UserError(
                f"the feature set '{name}' cannot be exported; of this network there are: "
                f"{', '.join(('raw_pixels', *HISTOGRAMS, *maps.pooled))}"
            )
        return torch.cat([pool_cells(values, self.grid) for values in maps.pooled[name]], 1)


def _shares(latent: Sequence[int], grids: Sequence[int]) -> Tensor:
    """Return what each position adds to the share of its code in each cell, (cells, positions)."""
    histogram = CodeHistogram(2, latent, grids).fit([])
    cells = [F.one_hot(torch.from_numpy(cell)).T.float() for cell in histogram.cells_]
    shares = torch.cat(cells)
    return shares / shares.sum(1, keepdim=True)


class ProbeHead(nn.Module):
    """A fitted probe on features (B, width): probabilities (B, classes), or the number (B, 1).

    Of two classes the probability of class 1 alone, (B, 1).
    """

    weights: Tensor
    mean: Tensor
    intercept: Tensor

    def __init__(self, probe: Pipeline) -> None:
        super().__init__()
        linear, model = LinearProbe.of(probe), probe[-1]
        at_mean = linear.intercept + linear.weights @ linear.mean
        for name, values in (
            ("weights", linear.weights),
            ("mean", linear.mean),
            ("intercept", at_mean),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self.classifies = isinstance(model, LogisticRegression)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Return the prediction."""
        logits = (features - self.mean) @ self.weights.T + self.intercept
        if not self.classifies:
            return logits
        return logits.sigmoid() if len(self.weights) == 1 else logits.softmax(1)


def features_of_probe(probe: Pipeline, grid: int) -> list[str]:
    """Return the feature sets that a probe reads; of codes it is the histogram of them."""
    names = list(probe[0].names)
    if names != ["codes_0"]:
        return names
    return ["histogram" if tuple(probe[1].grids) == (1,) else "pyramid"]
