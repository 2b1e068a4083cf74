"""What processes that train one model tell each other; alone, each of these does nothing.

Every process holds an equal slice of the global batch, in the order of their ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def total(values: Tensor) -> Tensor:
    """The sum of ``values`` over the processes, in place; no gradient passes."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def gathered(values: Tensor) -> Tensor:
    """Every process's ``values`` (B, ...), one after another, (world B, ...), with gradients."""
    if world() == 1:
        return values
    every: Tensor = _Gather.apply(values)
    return every


class _Gather(torch.autograd.Function):
    """A process's values are in the loss of every other, so that all their gradients add up."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.number = len(values)
        parts = [torch.empty_like(values) for _ in range(world())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        start = rank() * ctx.number
        return total(gradient.contiguous())[start : start + ctx.number]
