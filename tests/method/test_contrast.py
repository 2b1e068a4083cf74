"""The contrast between views against a slow reference and closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from medvq.method.contrast import ContrastiveLoss, no_negatives, nt_xent
from torch import Tensor, nn

Subjects = Sequence[tuple[int, int]]


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 5, 4), torch.randn(3, 5, 4)


def slow_nt_xent(
    first: Tensor, second: Tensor, temperature: float, subjects: Subjects = ()
) -> float:
    """Equation 1 of the paper for one group (B, D), a pair at a time.

    Where ``subjects`` are given as (index, number of images), the negatives of a view are those of
    other subjects with a number of images of as many binary digits.
    """
    views = [view / math.sqrt(view @ view) for view in torch.cat([first, second]).double()]
    losses = []
    for i, anchor in enumerate(views):
        scores = [math.exp(float(anchor @ view) / temperature) for view in views]
        positive = (i + len(first)) % len(views)
        among = set(range(len(views))) - {i, positive}
        if subjects:
            (one, number), others = subjects[i % len(first)], [*subjects, *subjects]
            digits = number.bit_length()
            among = {j for j in among if others[j][0] != one}
            among = {j for j in among if others[j][1].bit_length() == digits}
        negatives = sum(scores[j] for j in among)
        losses.append(-math.log(scores[positive] / (scores[positive] + negatives)))
    return sum(losses) / len(losses)


SUBJECTS = ((0, 1), (1, 2), (1, 2), (2, 3), (3, 1))
"""Of five images, two of one subject; the last but one has three, of which two are elsewhere."""


def test_negatives_are_of_other_subjects_with_about_as_many_images(
    views: tuple[Tensor, Tensor],
) -> None:
    left_out = no_negatives(torch.tensor(SUBJECTS))
    expected = sum(slow_nt_xent(a, b, 0.3, SUBJECTS) for a, b in zip(*views, strict=True)) / 3
    assert nt_xent(*views, 0.3, left_out=left_out).item() == pytest.approx(expected, rel=1e-5)


def test_a_view_without_negatives_has_no_loss_and_no_gradient() -> None:
    first, second = torch.randn(1, 2, 4, requires_grad=True), torch.randn(1, 2, 4)
    loss = nt_xent(first, second, 0.2, left_out=no_negatives(torch.tensor([[0, 1], [1, 2]])))
    loss.backward()
    assert loss.item() == 0.0
    assert first.grad is not None
    assert first.grad.eq(0).all()


def test_who_has_another_number_of_images_pushes_nothing_away(views: tuple[Tensor, Tensor]) -> None:
    left_out = no_negatives(torch.tensor(SUBJECTS))
    first, second = (view.clone().requires_grad_() for view in views)
    nt_xent(first, second, 0.3, left_out=left_out).backward()
    moved = torch.randn(3, 4)
    changed = [view.clone() for view in views]
    for view in changed:  # the fourth image, of a subject of three
        view[:, 3] = moved
    one, two = (view.requires_grad_() for view in changed)
    nt_xent(one, two, 0.3, left_out=left_out).backward()
    assert first.grad is not None
    assert one.grad is not None
    # The images of subjects with a single one do not feel it; those with two or three do.
    torch.testing.assert_close(one.grad[:, [0, 4]], first.grad[:, [0, 4]])
    assert not torch.allclose(one.grad[:, 1], first.grad[:, 1])


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
