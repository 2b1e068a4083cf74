"""Adapted statistics: means and variances of the new images, and nothing else changes."""

import torch
from medvq.method.statistics import adapt_statistics
from torch import nn


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)
    )


def test_statistics_are_the_means_over_batches_layer_by_layer() -> None:
    adapted = network().eval()
    batches = list(torch.randn(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 + 1)
    adapt_statistics(adapted, batches)
    maps = batches
    convolved = [adapted[0](batch) for batch in maps]
    for index in (1, 4):
        norm = adapted[index]
        means = [batch.mean((0, 2, 3)) for batch in convolved]
        variances = [batch.var((0, 2, 3)) for batch in convolved]
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
        if index == 1:
            weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
            convolved = [
                adapted[3](
                    (
                        (batch - batch.mean((0, 2, 3), keepdim=True))
                        / (batch.var((0, 2, 3), unbiased=False, keepdim=True) + norm.eps).sqrt()
                        * weight
                        + bias
                    ).relu()
                )
                for batch in convolved
            ]


def test_weights_modes_and_momentum_stay() -> None:
    adapted, before = network(), network()
    adapted[1].eval()
    adapt_statistics(adapted, [torch.randn(4, 1, 8, 8)])
    for name, value in before.named_parameters():
        assert torch.equal(value, dict(adapted.named_parameters())[name])
    assert [module.training for module in adapted] == [True, False, True, True, True]
    assert adapted[1].momentum == before[1].momentum == 0.1


def test_a_change_of_brightness_and_contrast_is_undone() -> None:
    encoder = network().eval()
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    changed = images * 0.3 - 0.4
    adapt_statistics(encoder, [images])
    expected, off = encoder(images), encoder(changed)
    adapt_statistics(encoder, [changed])
    torch.testing.assert_close(encoder(changed), expected, atol=1e-3, rtol=0)
    assert (off - expected).abs().max() > 0.5
