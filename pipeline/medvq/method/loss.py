"""What pretraining minimises: reconstruction, commitment and agreement, in one module."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvq.config import PretrainConfig
from medvq.method.contrast import ContrastiveLoss
from medvq.method.scaling import from_network
from medvq.method.vqvae import VQVAE, EncoderOutput, architecture

LOSSES = ("loss", "reconstruction", "contrast", "commitment")
_AGREEING_LEVELS = 2


class Objective(nn.Module):
    """The network and the heads of its agreement, trained as one."""

    def __init__(
        self, config: PretrainConfig, variance: float, channels: int = 1, spatial_dims: int = 2
    ) -> None:
        super().__init__()
        self.network = VQVAE(**architecture(config, channels, spatial_dims))
        self.config, self.variance = config, variance
        widths = [*config.widths[-_AGREEING_LEVELS:], config.codebook_dim]
        self.contrast = ContrastiveLoss(widths, config.contrast.grid, config.contrast.temperature)

    def forward(self, first: Tensor, second: Tensor, target: Tensor) -> dict[str, Any]:
        """Losses, the reconstruction in [0, 1], and the codes of each level."""
        out = self.network(first)
        images = from_network(out.images)
        mse = F.mse_loss(images.float(), target) / self.variance
        loss = self.config.reconstruction * mse + out.loss
        contrast = torch.zeros((), device=first.device)
        if self.config.contrast.weight > 0:
            other = self.network.features(second)
            contrast = self.contrast(_agreeing(out.encoded), _agreeing(other))
            loss = loss + self.config.contrast.weight * contrast
        return {
            "loss": loss,
            "reconstruction": mse,
            "contrast": contrast,
            "commitment": out.loss,
            "images": images,
            "codes": out.codes,
        }


def _agreeing(encoded: EncoderOutput) -> list[Tensor]:
    """The deepest levels and the latent: agreement before the codebook makes its codes semantic."""
    return [level.float() for level in (*encoded.levels[-_AGREEING_LEVELS:], encoded.latent)]
