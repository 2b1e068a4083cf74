"""Steps of the quantizer and of the network alone, MedVQ's and others'."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from medvq.method.quantizer import VectorQuantizer
from medvq.method.vqvae import VQVAE, Architecture
from torch import Tensor, nn

from benchmarks.speed.measure import (
    MEDVQ,
    MONAI,
    PEER,
    PLAIN,
    Bench,
    Row,
    Step,
    faster,
    within,
)

SIZES = ((64, (32, 64)), (128, (32, 64, 64)))
"""Sides of images, and widths of the network."""


def quantizer_step(kind: str, number: int, dim: int, size: int, device: torch.device) -> Step:
    """Return a forward pass, codebook update and backward pass of ``number`` vectors."""
    torch.manual_seed(0)
    features = torch.randn(number // 256, dim, 16, 16, device=device)
    used = slice(0, 3, 2)  # quantized values and loss, of values, codes and loss
    if kind == MEDVQ:
        network: nn.Module = VectorQuantizer(size, dim)
        features = features.contiguous(memory_format=torch.channels_last)
    elif kind == MONAI:
        from monai.networks.layers.vector_quantizer import EMAQuantizer

        network, used = EMAQuantizer(2, size, dim, ddp_sync=False), slice(0, 2)
    else:
        from vector_quantize_pytorch import VectorQuantize

        network = VectorQuantize(
            dim, size, decay=0.99, commitment_weight=0.25, accept_image_fmap=True
        )
    network.to(device)
    features.requires_grad_()

    def step() -> None:
        features.grad = None
        values, loss = network(features)[used]
        (values.mean() + loss.sum()).backward()

    return step


def matrix_product(number: int, dim: int, size: int, device: torch.device) -> Step:
    """Return the product of all vectors and all codes, into memory that is there."""
    vectors, codebook = (torch.randn(rows, dim, device=device) for rows in (number, size))
    out = torch.empty(number, size, device=device)
    return lambda: torch.mm(vectors, codebook.T, out=out)


def measure_quantizer(bench: Bench) -> list[Row]:
    """Measure the quantizer against others and the matrix product that it cannot do without."""
    rows = []
    for number, size, must in (
        (32_768, 1024, (5.0, 4.0, 2.0)),
        (16_384, 8192, (4.0, 6.0, 1.6)),
    ):
        steps = {
            kind: quantizer_step(kind, number, 64, size, bench.device)
            for kind in (MEDVQ, MONAI, PEER)
        }
        steps["product"] = matrix_product(number, 64, size, bench.device)
        taken = bench.seconds(steps)
        figure, own = f"quantizer step, N={number:,}, D=64, K={size:,}", taken[MEDVQ]
        rows += [
            faster(figure, f"{MONAI} EMAQuantizer", own, taken[MONAI], must[0]),
            faster(figure, f"{PEER} VectorQuantize", own, taken[PEER], must[1]),
            within(figure, "the matrix product alone", own, taken["product"], must[2]),
        ]
    return rows


def monai_vqvae(widths: tuple[int, ...], residual_layers: int) -> nn.Module:
    """Return MONAI's network with a level for each width, halving as MedVQ's does."""
    from monai.networks import nets

    network: nn.Module = nets.VQVAE(
        2,
        1,
        1,
        channels=widths,
        num_res_layers=residual_layers,
        num_res_channels=widths,
        downsample_parameters=((2, 4, 1, 1),) * len(widths),
        upsample_parameters=((2, 4, 1, 1, 0),) * len(widths),
        num_embeddings=512,
        embedding_dim=64,
        decay=0.99,
        ddp_sync=False,
    )
    return network


def training_step(kind: str, widths: tuple[int, ...], images: Tensor, mixed: bool) -> Step:
    """Return one step of reconstruction with AdamW, of MedVQ, a plain loop or MONAI."""
    torch.manual_seed(0)
    own = kind.startswith(MEDVQ)
    network: Any = VQVAE(Architecture(widths=widths))
    if not own and kind != PLAIN:
        network = monai_vqvae(widths, int(kind[-1]))
    layout = torch.channels_last if own else torch.contiguous_format
    network = network.to(images.device, memory_format=layout)
    images = images.clone(memory_format=layout)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=own)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
            out = network(images)
            loss = F.mse_loss(out[0].float(), images) + out[-1]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def measure_training(bench: Bench) -> list[Row]:
    """Measure the training step against MONAI's and a plain loop.

    MedVQ's is in the precision of its training; on a processor MONAI's is in float32, its own.
    """
    rows = []
    for (side, widths), must in zip(SIZES, (5.0, 7.0), strict=True):
        images = torch.rand(64, 1, side, side, device=bench.device)
        three, one = f"{MONAI} 3", f"{MONAI} 1"
        steps = {kind: training_step(kind, widths, images, bench.cuda) for kind in (three, one)}
        steps[MEDVQ] = training_step(MEDVQ, widths, images, bench.mixed)
        steps[PLAIN] = training_step(PLAIN, widths, images, False)
        taken = bench.seconds(steps)
        figure, own = f"training step, {side} px, batch 64, widths {widths}", taken[MEDVQ]
        rows += [
            faster(figure, f"{MONAI} VQVAE, its 3 residual layers", own, taken[three], must),
            faster(figure, f"{MONAI} VQVAE, 1 residual layer", own, taken[one], None),
            faster(figure, "the same network, eager and contiguous", own, taken[PLAIN], 1.4),
        ]
    return rows
