"""Steps of the quantizer and of the network alone, MedVQ's and others'."""

from __future__ import annotations

import time

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
    operations,
    within,
)

SIZES = ((64, (32, 64)), (128, (32, 64, 64)))
"""Sides of images, and widths of the network."""
COMPILED = f"{MEDVQ} compiled"
OPERATIONS = "its operations at the rate of a large matrix product"


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


def measure_quantizer(bench: Bench) -> list[Row]:
    """Measure the quantizer against others and the matrix product that it cannot do without."""
    rows = []
    for number, size, must in (
        (32_768, 1024, (5.0, 4.0, 2.0)),
        (16_384, 8192, (4.0, 6.0, 1.6)),
    ):
        kinds = (MEDVQ, MONAI, PEER)
        steps = {kind: quantizer_step(kind, number, 64, size, bench.device) for kind in kinds}
        vectors, codebook = (torch.randn(n, 64, device=bench.device) for n in (number, size))
        out = torch.empty(number, size, device=bench.device)
        product = (vectors, codebook.T, out)
        steps["product"] = lambda product=product: torch.mm(product[0], product[1], out=product[2])
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
    """Return one step of reconstruction with AdamW; ``kind``: MedVQ, plain loop or MONAI and layers."""
    torch.manual_seed(0)
    own = kind.startswith(MEDVQ)
    if own or kind == PLAIN:
        network = VQVAE(Architecture(widths=widths))
        if kind == COMPILED:
            network.encoder.compile()
            network.decoder.compile()
    else:
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


def convolutions_alone(widths: tuple[int, ...], images: Tensor, mixed: bool) -> Step:
    """Return each convolution of the same network by itself, forward and backward."""
    network = VQVAE(Architecture(widths=widths)).to(images.device)
    shapes: list[tuple[nn.Module, torch.Size]] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(lambda m, x, _: shapes.append((m, x[0].shape)))
    with torch.no_grad():
        network.eval()(images)
    tasks = []
    for number, (module, shape) in enumerate(shapes):
        module._forward_hooks.clear()
        features = torch.randn(shape, device=images.device)
        features = features.contiguous(memory_format=torch.channels_last)
        # Nobody needs the gradient of the image.
        tasks.append((module, features.requires_grad_(number > 0)))

    def step() -> None:
        for module, features in tasks:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
                out = module(features)
            features.grad = module.weight.grad = None
            out.backward(out.detach())

    return step


def measure_training(bench: Bench) -> list[Row]:
    """Measure the training step against MONAI's, a plain loop, and what it cannot do without.

    MedVQ's is in the precision of its training; on a processor MONAI's is in float32, its own.
    """
    rows = []
    for (side, widths), must in zip(SIZES, (5.0, 7.0), strict=True):
        images = torch.rand(64, 1, side, side, device=bench.device)
        three, one = f"{MONAI} 3", f"{MONAI} 1"
        steps = {kind: training_step(kind, widths, images, bench.cuda) for kind in (three, one)}
        steps |= {
            MEDVQ: training_step(MEDVQ, widths, images, bench.mixed),
            PLAIN: training_step(PLAIN, widths, images, False),
            "convolutions": convolutions_alone(widths, images, bench.mixed),
        }
        taken = bench.seconds(steps)
        figure, own = f"training step, {side} px, batch 64, widths {widths}", taken[MEDVQ]
        least = operations(steps[MEDVQ]) / bench.operations_per_second(bench.mixed)
        rows += [
            faster(figure, f"{MONAI} VQVAE, its 3 residual layers", own, taken[three], must),
            faster(figure, f"{MONAI} VQVAE, 1 residual layer", own, taken[one], None),
            faster(figure, "the same network, eager and contiguous", own, taken[PLAIN], 1.4),
            within(figure, "its convolutions alone", own, taken["convolutions"], 1.35),
            within(figure, OPERATIONS, own, least, None),
        ]
    return rows


def measure_compilation(bench: Bench) -> list[Row]:
    """Measure what torch.compile would make of the encoder and the decoder, and what it costs."""
    rows = []
    for side, widths in SIZES:
        images = torch.rand(64, 1, side, side, device=bench.device)
        kinds = (MEDVQ, COMPILED)
        steps = {kind: training_step(kind, widths, images, bench.mixed) for kind in kinds}
        start = time.perf_counter()
        steps[COMPILED]()
        bench.wait()
        first = time.perf_counter() - start
        taken = bench.seconds(steps)
        figure = f"training step, {side} px, batch 64, widths {widths}"
        rows += [
            faster(figure, "the same, compiled", taken[MEDVQ], taken[COMPILED], None),
            within(f"its compilation, {side} px", "a step", first, taken[COMPILED], None),
        ]
    return rows
