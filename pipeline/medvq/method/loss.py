"""The loss of pretraining: reconstruction, commitment and contrast, in one module."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvq.config import PretrainConfig
from medvq.method.contrast import ContrastiveLoss
from medvq.method.scaling import from_network
from medvq.method.vqvae import VQVAE, Architecture, EncoderOutput

# How many of the deepest trained levels the contrastive loss sees, besides the latent: contrast
# before the codebook makes its codes semantic; shallower features lose by any training
# (docs/method.md).
_CONTRASTED_LEVELS = 2


class PretrainingOutput(NamedTuple):
    """The losses of a batch, scalars of which the first is minimised, and what they are of."""

    loss: Tensor
    reconstruction: Tensor  # squared error in units of the variance of the training images
    contrast: Tensor
    commitment: Tensor
    images: Tensor  # the reconstruction in [0, 1], (B, C, *spatial)
    codes: list[Tensor]  # the grids of code indices of each level, coarsest first


class PretrainingLoss(nn.Module):
    """The network and the projection heads of its contrastive loss, trained as one.

    ``variance`` is that of the training images in [0, 1].
    """

    def __init__(
        self, config: PretrainConfig, variance: float, channels: int = 1, spatial_dims: int = 2
    ) -> None:
        super().__init__()
        self.network = VQVAE(Architecture.from_config(config, channels, spatial_dims))
        self.config, self.variance = config, variance
        trained = config.level_widths[config.frozen_levels :]
        self.contrasted = min(_CONTRASTED_LEVELS, len(trained))
        widths = [*trained[len(trained) - self.contrasted :], config.codebook_dim]
        self.contrast = ContrastiveLoss(widths, config.contrast.grid, config.contrast.temperature)

    def forward(
        self, first: Tensor, second: Tensor, target: Tensor, subjects: Tensor | None = None
    ) -> PretrainingOutput:
        """Compute the losses of two views in the network's range; ``target`` is in [0, 1].

        ``subjects``, see :func:`~medvq.method.contrast.no_negatives`, choose the negatives of the
        contrastive loss where the configuration says so.
        """
        out = self.network(first)
        images = from_network(out.images)
        mse = F.mse_loss(images.float(), target) / self.variance
        loss = self.config.reconstruction * mse + out.loss
        contrast = torch.zeros((), device=first.device)
        if self.config.contrast.weight > 0:
            other = self.network.features(second)
            chosen = subjects if self.config.contrast.negatives == "same_multiplicity" else None
            contrast = self.contrast(self._contrasted(out.encoded), self._contrasted(other), chosen)
            loss = loss + self.config.contrast.weight * contrast
        return PretrainingOutput(loss, mse, contrast, out.loss, images, out.codes)

    def _contrasted(self, encoded: EncoderOutput) -> list[Tensor]:
        levels = encoded.levels[len(encoded.levels) - self.contrasted :]
        return [level.float() for level in (*levels, encoded.latent)]
