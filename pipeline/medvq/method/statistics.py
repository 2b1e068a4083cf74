"""Statistics of batch normalisation, estimated on images of another kind than was trained on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def adapt_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running means and variances of a network by those of other images.

    The weights stay. Activations of a network that was trained on photographs are off centre on
    radiographs, and differently for each scanner; with statistics of radiographs they are centred
    again [1]_. Each layer's are the means over ``batches``, which the layers before it normalise by
    their own statistics, as in training.

    Parameters
    ----------
    network : is left in the mode, and with the momentum, that it has.
    batches : its input, at least one batch of two images.

    References
    ----------
    .. [1] Li, Wang, Shi, Liu, Hou: Revisiting Batch Normalization for Practical Domain Adaptation.
       2016, arXiv 1603.04779.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    modes = {module: module.training for module in network.modules()}
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
    network.train()
    for batch in batches:
        network(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
