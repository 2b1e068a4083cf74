"""Networks that others would train on unlabelled images, written plainly, and their features.

A contrastive ResNet-18 as users of lightly or solo-learn train it, and MONAI's VQ-VAE as its
tutorials do. Each has a whole training, with its own schedule, for every number of epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from medvq.device import computes_in_bfloat16
from medvq.method.scaling import to_network, to_unit
from medvq.training.batches import epoch_seed
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.rivals import learning_rate_factor, resnet
from benchmarks.speed.steps import monai_vqvae

Bytes = NDArray[np.uint8]
Encode = Callable[[Bytes], NDArray[np.float32]]
SIDE = 128
"""Side that images are averaged down to, in pixels: that of MedVQ's images."""
GRID = 4
"""Cells along each axis that maps of features are averaged to, as MedVQ's are."""
_BATCH = 128
_TEMPERATURE = 0.1  # of SimCLR for few epochs (Chen et al., ICML 2020)
_CONTRASTIVE_RATE, _WEIGHT_DECAY = 1e-3, 0.05
_RECONSTRUCTION_RATE = 3e-4  # of MONAI's tutorial on the VQ-VAE
_MONAI_WIDTHS, _MONAI_LAYERS = (32, 64, 64), 3


def nt_xent(first: Tensor, second: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    """Return the contrastive loss of two views of a batch, (B, D) each (Chen et al., 2020)."""
    vectors = F.normalize(torch.cat([first, second]), dim=1)
    logits = vectors @ vectors.T / temperature
    logits.fill_diagonal_(-math.inf)
    target = torch.arange(len(vectors), device=vectors.device).roll(len(first))
    return F.cross_entropy(logits, target)


def random_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random crop of each image (B, 1, S, S) in [0, 1], with other greys and blur.

    The views of SimCLR for grey pictures: crops of a fifth to all of the area, brightness and
    contrast by up to 0.4, blurred half of the time. Chests are not mirrored.
    """
    number = len(images)
    scale, x, y, bright, contrast, blur = torch.rand((6, number), generator=generator)
    side = (0.2 + 0.8 * scale).sqrt()
    theta = torch.zeros(number, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, 0, 2], theta[:, 1, 2] = (1 - side) * (2 * x - 1), (1 - side) * (2 * y - 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    view = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    mean = view.mean((1, 2, 3), keepdim=True)
    factor, shift = (0.8 * v[:, None, None, None] - 0.4 for v in (contrast, bright))
    view = ((view - mean) * (1 + factor) + mean * (1 + shift)).clamp(0, 1)
    blurred = F.avg_pool2d(F.pad(view, (2,) * 4, mode="replicate"), 5, stride=1)
    return torch.where(blur[:, None, None, None] < 0.5, blurred, view)


def contrastive_resnet(images: Bytes, epochs: int, seed: int, device: str) -> Encode:
    """Train a ResNet-18 with NT-Xent on images (N, S, S); its features are those of SimCLR."""
    torch.manual_seed(seed)
    backbone: Any = resnet()
    width = backbone.fc.in_features
    backbone.fc = nn.Identity()
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
    network = nn.Sequential(backbone, head).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    generator = torch.Generator().manual_seed(epoch_seed(seed, 0))

    def loss(batch: Tensor) -> Tensor:
        views = (to_network(random_view(batch, generator)).to(device) for _ in range(2))
        vectors = [network(view).float() for view in views]
        with torch.autocast(vectors[0].device.type, enabled=False):
            return nt_xent(*vectors)

    _train(network, loss, images, epochs, seed, _CONTRASTIVE_RATE)
    return lambda some: _encode(backbone, some, device)


def monai_vqvae_features(images: Bytes, epochs: int, seed: int, device: str) -> Encode:
    """Train MONAI's VQ-VAE on images (N, S, S); its features are its quantised maps in cells."""
    torch.manual_seed(seed)
    network: Any = monai_vqvae(_MONAI_WIDTHS, _MONAI_LAYERS).to(device)

    def loss(batch: Tensor) -> Tensor:
        pictures = to_network(batch).to(device)
        reconstruction, quantization_loss = network(pictures)
        total: Tensor = F.l1_loss(reconstruction.float(), pictures) + quantization_loss.float()
        return total

    def features(pictures: Tensor) -> Tensor:
        quantized = network.quantize(network.encode(pictures))[0]
        return F.adaptive_avg_pool2d(quantized, GRID).flatten(1)

    _train(network, loss, images, epochs, seed, _RECONSTRUCTION_RATE)
    return lambda some: _encode(network, some, device, features)


PEERS: dict[str, Callable[[Bytes, int, int, str], Encode]] = {
    "contrastive_resnet18": contrastive_resnet,
    "monai_vqvae": monai_vqvae_features,
}
"""By name of the row, what trains on images, for so many epochs, from a seed, on a device."""


def _train(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    images: Bytes,
    epochs: int,
    seed: int,
    rate: float,
) -> None:
    """Minimise the loss of batches in [0, 1] by AdamW, with a warm-up and a cosine."""
    size = min(_BATCH, len(images))
    steps = epochs * (len(images) // size)
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, min(30, steps // 2), steps)
    )
    device = next(network.parameters()).device
    mixed = computes_in_bfloat16(device)
    network.train()
    for rows in _batches(len(images), size, epochs, seed):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            value = loss(_resized(images[rows]))
        value.backward()
        optimizer.step()
        schedule.step()


def _batches(number: int, size: int, epochs: int, seed: int) -> Iterator[NDArray[np.intp]]:
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(number)
        for start in range(0, number - size + 1, size):
            yield np.sort(order[start : start + size])


def _resized(images: Bytes) -> Tensor:
    # A copy, since they may be mapped from a file that is not to be written.
    return F.interpolate(to_unit(np.array(images)), (SIDE, SIDE), mode="area")


@torch.inference_mode()
def _encode(
    network: nn.Module,
    images: Bytes,
    device: str,
    features: Callable[[Tensor], Tensor] | None = None,
) -> NDArray[np.float32]:
    network.eval()
    parts = [
        (features or network)(to_network(_resized(images[start : start + 256])).to(device))
        for start in range(0, len(images), 256)
    ]
    return np.asarray(torch.cat(parts).float().cpu().numpy(), np.float32)
