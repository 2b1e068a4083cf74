"""The quantizer: forward, update of the codebook and backward."""

from __future__ import annotations

import torch
from medvq.method.quantizer import VectorQuantizer

from benchmarks.speed.measure import (
    MEDVQ,
    MONAI,
    PEER,
    Bench,
    Row,
    Step,
    faster,
    matrix_product,
    within,
)


def quantizer_step(kind: str, number: int, dim: int, size: int, device: torch.device) -> Step:
    """Forward, codebook update and backward of ``number`` vectors."""
    torch.manual_seed(0)
    features = torch.randn(number // 256, dim, 16, 16, device=device)
    if kind == MEDVQ:
        own = VectorQuantizer(size, dim).to(device)
        features = features.contiguous(memory_format=torch.channels_last)
        network, kept = own, slice(0, 3, 2)
    elif kind == MONAI:
        from monai.networks.layers.vector_quantizer import EMAQuantizer

        monai = EMAQuantizer(2, size, dim, ddp_sync=False).to(device)
        network, kept = monai, slice(0, 2)
    else:
        from vector_quantize_pytorch import VectorQuantize

        peer = VectorQuantize(
            dim, size, decay=0.99, commitment_weight=0.25, accept_image_fmap=True
        ).to(device)
        network, kept = peer, slice(0, 3, 2)
    features.requires_grad_()

    def step() -> None:
        features.grad = None
        values, loss = network(features)[kept]
        (values.mean() + loss.sum()).backward()

    return step


def measure_quantizer(bench: Bench) -> list[Row]:
    """Time of the quantizer."""
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
        figure = f"quantizer step, N={number:,}, D=64, K={size:,}"
        rows += [
            faster(figure, f"{MONAI} EMAQuantizer", taken[MEDVQ], taken[MONAI], must[0]),
            faster(figure, f"{PEER} VectorQuantize", taken[MEDVQ], taken[PEER], must[1]),
            within(figure, "the matrix product alone", taken[MEDVQ], taken["product"], must[2]),
        ]
        del steps
    return rows
