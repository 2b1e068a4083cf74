"""The training step of the network alone, and where its time goes."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from medvq.method.vqvae import VQVAE, Architecture
from torch import Tensor, nn

from benchmarks.speed.measure import (
    MEDVQ,
    MONAI,
    PLAIN,
    Bench,
    Row,
    Step,
    faster,
    operations,
    within,
)

SIZES = ((64, (32, 64)), (128, (32, 64, 64)))
COMPILED = f"{MEDVQ} compiled"
OPERATIONS = "its operations at the rate of a large matrix product"


def monai_vqvae(widths: tuple[int, ...], residual_layers: int) -> nn.Module:
    """MONAI's network with a level for each width, halving as MedVQ's does."""
    from monai.networks import nets

    net: nn.Module = nets.VQVAE(
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
    return net


def training_step(kind: str, widths: tuple[int, ...], images: Tensor, amp: bool) -> Step:
    """One step of reconstruction with Adam: ``medvq`` as pretraining does it."""
    torch.manual_seed(0)
    device = images.device
    own = kind.startswith(MEDVQ)
    if own or kind == PLAIN:
        net = VQVAE(Architecture(widths=widths)).to(device)
        if not own:
            net = net.to(memory_format=torch.contiguous_format)
        if kind == COMPILED:
            net.encoder.compile()
            net.decoder.compile()
    else:
        net = monai_vqvae(widths, int(kind[-1])).to(device)
    layout = torch.channels_last if own else torch.contiguous_format
    images = images.clone(memory_format=layout)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=own)
    amp = amp and kind != PLAIN

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            out = net(images)
            reconstruction, loss = (out[0], out[-1])
            loss = F.mse_loss(reconstruction.float(), images) + loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def convolutions_alone(widths: tuple[int, ...], images: Tensor, amp: bool) -> Step:
    """Each convolution of the same network by itself, forward and backward, at its own shapes."""
    net = VQVAE(Architecture(widths=widths)).to(images.device)
    shapes: list[tuple[nn.Module, tuple[int, ...]]] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(lambda m, x, _: shapes.append((m, x[0].shape)))
    with torch.no_grad():
        net.eval()(images)
    tasks = []
    for number, (module, shape) in enumerate(shapes):
        module._forward_hooks.clear()
        given = torch.randn(shape, device=images.device).contiguous(
            memory_format=torch.channels_last
        )
        # Nobody asks for the gradient of the image.
        tasks.append((module, given.requires_grad_(number > 0)))

    def step() -> None:
        for module, given in tasks:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
                out = module(given)
            given.grad = module.weight.grad = None
            out.backward(out.detach())

    return step


def measure_training(bench: Bench) -> list[Row]:
    """The step against MONAI's, a plain loop, the convolutions and the matrix product.

    MedVQ's is in the precision of its training; on a processor MONAI's is in float32, its own.
    """
    rows = []
    for (side, widths), must in zip(SIZES, (5.0, 7.0), strict=True):
        images = torch.rand(64, 1, side, side, device=bench.device)
        figure = f"training step, {side} px, batch 64, widths {widths}"
        three, one = f"{MONAI} 3", f"{MONAI} 1"
        steps = {
            MEDVQ: training_step(MEDVQ, widths, images, bench.mixed),
            **{kind: training_step(kind, widths, images, bench.cuda) for kind in (three, one)},
            PLAIN: training_step(PLAIN, widths, images, False),
            "convolutions": convolutions_alone(widths, images, bench.mixed),
        }
        if also := bench.mixed and not bench.cuda:
            steps |= {
                f"{MEDVQ} float32": training_step(MEDVQ, widths, images, False),
                f"{MONAI} mixed": training_step(three, widths, images, True),
                "convolutions float32": convolutions_alone(widths, images, False),
            }
        taken = bench.seconds(steps)
        own, limit = (
            taken[MEDVQ],
            operations(steps[MEDVQ]) / bench.operations_per_second(bench.mixed),
        )
        rows += [
            faster(figure, f"{MONAI} VQVAE, its 3 residual layers", own, taken[three], must),
            faster(figure, f"{MONAI} VQVAE, 1 residual layer", own, taken[one], None),
            faster(figure, "the same network, eager and contiguous", own, taken[PLAIN], 1.4),
            within(figure, "its convolutions alone", own, taken["convolutions"], 1.35),
            within(figure, OPERATIONS, own, limit, None),
        ]
        if also:
            full, name = taken[f"{MEDVQ} float32"], f"the same in float32, {side} px"
            monai = f"{MONAI} VQVAE, its 3 residual layers"
            rows += [
                faster(
                    figure, f"{monai}, in mixed precision too", own, taken[f"{MONAI} mixed"], None
                ),
                faster(name, monai, full, taken[three], None),
                faster(name, "the same network, eager and contiguous", full, taken[PLAIN], None),
                within(name, "its convolutions alone", full, taken["convolutions float32"], 1.35),
            ]
    return rows


def measure_compilation(bench: Bench) -> list[Row]:
    """What torch.compile would make of the encoder and the decoder, and what it costs."""
    rows = []
    for side, widths in SIZES:
        images = torch.rand(64, 1, side, side, device=bench.device)
        steps = {
            kind: training_step(kind, widths, images, bench.mixed) for kind in (MEDVQ, COMPILED)
        }
        start = time.perf_counter()
        steps[COMPILED]()
        bench.wait()
        first = time.perf_counter() - start
        taken = bench.seconds(steps)
        figure = f"training step, {side} px, batch 64, widths {widths}"
        rows += [
            faster(figure, "the same, compiled", taken[MEDVQ], taken[COMPILED], None),
            within("its compilation", "a step", first, taken[COMPILED], None),
        ]
    return rows


def training_profile(bench: Bench) -> list[str]:
    """Where the time of the 64-px step goes, as lines of a table."""
    images = torch.rand(64, 1, 64, 64, device=bench.device)
    step = training_step(MEDVQ, (32, 64), images, bench.mixed)
    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiled:
        for _ in range(3):
            step()
    events = profiled.key_averages()
    attribute = "self_device_time_total" if bench.cuda else "self_cpu_time_total"
    total = sum(getattr(event, attribute) for event in events)
    top = sorted(events, key=lambda event: -getattr(event, attribute))[:10]
    return [
        "| operation | share of the step |",
        "|---|---|",
        *(f"| `{e.key[:60]}` | {getattr(e, attribute) / total:.1%} |" for e in top),
    ]
