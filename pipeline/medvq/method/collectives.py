"""Collective operations of the processes that train one model; alone, each does nothing.

Every process holds an equal slice of the global batch, in the order of their ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum ``values`` over the processes, in place; no gradient passes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def all_gather(values: Tensor) -> Tensor:
    """Return every process's ``values`` (B, ...) in turn, (world B, ...), with gradients."""
    if world_size() == 1:
        return values
    gathered: Tensor = _AllGather.apply(values)  # type: ignore[no-untyped-call]  # torch has no types for it
    return gathered


class _AllGather(torch.autograd.Function):
    """All values of every process; their gradients add up, since every loss depends on them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.number = len(values)
        parts = [torch.empty_like(values) for _ in range(world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        start = rank() * ctx.number
        return all_reduce_sum(gradient.contiguous())[start : start + ctx.number]


class _GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batch of all processes, not only on CUDA as torch's is.

    Every process holds as many values of a channel as the others, so the mean is that of their
    means, and the variance the mean of their variances plus the variance of their means.
    """

    def forward(self, features: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return super().forward(features)
        axes = [0, *range(2, features.ndim)]
        variance, mean = torch.var_mean(features.float(), axes, correction=0)
        means, variances = all_gather(torch.stack([mean, variance])[None]).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        self._update(mean.detach(), variance.detach(), world_size() * features.numel() // len(mean))
        scale = self.weight * (variance + self.eps).rsqrt()
        per_channel = (1, -1) + (1,) * (features.ndim - 2)
        offset = (self.bias - mean * scale).reshape(per_channel)
        return (features * scale.reshape(per_channel) + offset).to(features.dtype)

    def _update(self, mean: Tensor, variance: Tensor, number: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * number / (number - 1), self.momentum)


class BatchNorm2d(_GlobalBatchNorm, nn.BatchNorm2d):
    """Batch normalisation of pictures (B, C, height, width)."""


class BatchNorm3d(_GlobalBatchNorm, nn.BatchNorm3d):
    """Batch normalisation of volumes (B, C, depth, height, width)."""
