"""Two processes with half a batch each against one with the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from medvq.method.collectives import BatchNorm2d, all_gather, all_reduce_sum, rank, world_size
from medvq.method.contrast import nt_xent
from medvq.method.quantizer import VectorQuantizer
from torch import Tensor, nn
from torch.distributed import FileStore  # type: ignore[attr-defined]  # not in its __all__
from torch.multiprocessing.spawn import spawn

WORLD = 2
State = dict[str, Tensor | None]


def half(batch: Tensor, axis: int = 0) -> Tensor:
    """This process's part."""
    return batch.tensor_split(world_size(), axis)[rank()]


def normalised() -> State:
    torch.manual_seed(0)
    layer = BatchNorm2d(3)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    out: State = {}
    for step in range(3):
        features = half(torch.randn(8, 3, 4, 5) * 3 + step + 100).requires_grad_()
        weights = half(torch.randn(8, 3, 4, 5))
        values = layer(features)
        # Processes average their gradients, so a sum over the whole batch is world times a part's.
        (values.square() * weights).sum().backward()
        out |= {f"values {step}": values, f"gradient {step}": features.grad}
    return out | {"mean": layer.running_mean, "variance": layer.running_var}


def contrasted() -> State:
    torch.manual_seed(1)
    first, second = (half(torch.randn(3, 6, 4), 1).requires_grad_() for _ in range(2))
    loss = nt_xent(first, second, 0.3)
    (loss / world_size()).backward()
    mean = all_reduce_sum(loss.detach().clone()) / world_size()
    swap = {"first": first.grad.transpose(0, 1), "second": second.grad.transpose(0, 1)}
    return swap | {"loss": mean}


# The count of a restarted code: twice half of an even use of 8 maps of 9 vectors.
RESTARTED = 2 * 0.5 * 8 * 9 / 24


@mock.patch("medvq.method.quantizer.RESTART_SHARE", 0.5)
def quantized() -> State:
    torch.manual_seed(2)
    quantizer = VectorQuantizer(24, 4, decay=0.7)
    batches = torch.randn(20, 8, 4, 3, 3) * torch.arange(1, 21).reshape(-1, 1, 1, 1, 1)
    codes, restarted = [], []
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        codes.append(quantizer(half(batch)).codes)
        restarted.append((quantizer.counts == RESTARTED).sum())
    return {
        "codes": torch.stack(codes, 1),
        "restarted": torch.stack(restarted).float(),
        "codebook": quantizer.codebook,
        "counts": quantizer.counts,
        "sums": quantizer.sums,
    }


def added() -> State:
    values = half(torch.arange(4.0)).requires_grad_()
    every = all_gather(values)
    (every * torch.arange(1.0, 5) / world_size()).sum().backward()
    return {"every": every, "gradient": values.grad}


CASES = (normalised, contrasted, quantized, added)
WHOLE = {"mean", "variance", "loss", "codebook", "counts", "sums", "restarted", "every"}


def compute() -> dict[str, State]:
    return {
        case.__name__: {name: value.detach() for name, value in case().items() if value is not None}
        for case in CASES
    }


def context(number: int, folder: Path) -> None:
    store = FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=number, world_size=WORLD)
    torch.save(compute(), folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    spawn(context, (folder,), WORLD)
    return [torch.load(folder / f"{number}.pt") for number in range(WORLD)]


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_two_processes_are_one(computed: list[dict[str, Any]], case: str) -> None:
    alone = compute()[case]
    for name, value in alone.items():
        parts = [part[case][name] for part in computed]
        if name in WHOLE:
            assert torch.equal(parts[0], parts[1]), name
            together = parts[0]
        else:
            together = torch.cat(parts)
        torch.testing.assert_close(together, value, rtol=1e-4, atol=1e-4, msg=name)


def test_codes_were_restarted(computed: list[dict[str, Any]]) -> None:
    """What is compared above has more than moving averages in it."""
    assert computed[0]["quantized"]["restarted"].any()
