"""The contrast between views against a slow reference and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from medvq.method.contrast import ContrastiveLoss, nt_xent
from torch import Tensor, nn


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 5, 4), torch.randn(3, 5, 4)


def slow_nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    """Equation 1 of the paper for one group (B, D), a pair at a time."""
    views = [view / math.sqrt(view @ view) for view in torch.cat([first, second]).double()]
    losses = []
    for i, anchor in enumerate(views):
        scores = [math.exp(float(anchor @ view) / temperature) for view in views]
        positive = scores[(i + len(first)) % len(views)]
        losses.append(-math.log(positive / (sum(scores) - scores[i])))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_loss_is_that_of_a_slow_loop_averaged_over_groups(
    views: tuple[Tensor, Tensor], temperature: float
) -> None:
    groups = [slow_nt_xent(a, b, temperature) for a, b in zip(*views, strict=True)]
    assert nt_xent(*views, temperature).item() == pytest.approx(sum(groups) / 3, rel=1e-5)


def test_equal_embeddings_tell_nothing() -> None:
    equal = torch.ones(2, 7, 3)
    assert nt_xent(equal, equal, 0.2).item() == pytest.approx(math.log(2 * 7 - 1), rel=1e-5)


def test_orthogonal_images_with_identical_views() -> None:
    axes = torch.eye(6)[None]
    # The positive scores exp(1 / t), each of the 2 B - 2 negatives 1.
    expected = math.log(1 + 10 * math.exp(-1 / 0.5))
    assert nt_xent(axes, axes, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_lengths_do_not_matter(views: tuple[Tensor, Tensor]) -> None:
    first, second = views
    scales = torch.rand(3, 5, 1) * 10 + 0.1
    torch.testing.assert_close(nt_xent(first * scales, second, 0.2), nt_xent(first, second, 0.2))


def test_views_are_alike(views: tuple[Tensor, Tensor]) -> None:
    first, second = views
    torch.testing.assert_close(nt_xent(first, second, 0.2), nt_xent(second, first, 0.2))


def test_the_right_partner_is_worth_more_than_a_wrong_one(views: tuple[Tensor, Tensor]) -> None:
    first, _ = views
    assert nt_xent(first, first, 0.2) < nt_xent(first, first.roll(1, 1), 0.2)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_agreement_sums_the_contrast_of_cells_of_levels_and_of_the_whole(spatial_dims: int) -> None:
    torch.manual_seed(0)
    contrast = ContrastiveLoss((3, 5), grid=2, temperature=0.3)
    sizes = ((3, 8), (5, 4))
    first, second = (
        [torch.randn(4, width, *[side] * spatial_dims) for width, side in sizes] for _ in range(2)
    )

    def cells(maps: Tensor) -> list[Tensor]:
        half = maps.shape[-1] // 2
        corners = torch.cartesian_prod(*[torch.arange(2)] * spatial_dims) * half
        return [
            maps[(..., *(slice(c, c + half) for c in corner.tolist()))].flatten(2).mean(2)
            for corner in corners
        ]

    def mean_loss(head: nn.Module, one: list[Tensor], two: list[Tensor]) -> float:
        losses = [slow_nt_xent(head(a), head(b), 0.3) for a, b in zip(one, two, strict=True)]
        return sum(losses) / len(losses)

    with torch.no_grad():
        expected = sum(
            mean_loss(head, cells(a), cells(b))
            for head, a, b in zip(contrast.heads, first, second, strict=True)
        )
        whole = [[maps[-1].flatten(2).mean(2)] for maps in (first, second)]
        expected += mean_loss(contrast.whole, *whole)
        assert contrast(first, second).item() == pytest.approx(expected, rel=1e-5)
