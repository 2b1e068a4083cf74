"""Use of codebooks: counts, perplexity."""

import math

import pytest
import torch
from medvq.evaluation.codebooks import count_codes, perplexity


def test_codes_are_counted() -> None:
    assert count_codes(torch.tensor([[[0, 3], [3, 1]]]), 5).tolist() == [1, 1, 0, 2, 0]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([3, 3, 3, 3, 3], 5.0), ([0, 7, 0], 1.0), ([1, 1, 2], 2**1.5), ([30, 30, 60, 0], 2**1.5)],
)
def test_perplexity(counts: list[int], expected: float) -> None:
    assert perplexity(torch.tensor(counts)) == pytest.approx(expected)


def test_perplexity_of_two_codes_is_that_of_a_coin() -> None:
    share = 0.1
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert perplexity(torch.tensor([1, 9])) == pytest.approx(math.exp(entropy))
