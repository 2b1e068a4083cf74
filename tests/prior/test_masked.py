"""The masked Transformer: what it draws follows the distribution, in as few passes as it says."""

from __future__ import annotations

import math

import pytest
import torch
from medvq.config import SampleConfig
from medvq.prior.code_prior import UNCONDITIONAL, UNKNOWN, Conditions, PriorArchitecture
from medvq.prior.masked import MaskedPrior
from torch import Tensor

SHAPE, PLACES = (3, 4), 12
ONE_AT_A_TIME = SampleConfig(steps=PLACES)


def new_prior(size: int, classes: int = 0) -> MaskedPrior:
    torch.manual_seed(0)
    return MaskedPrior(PriorArchitecture(size, SHAPE, classes, channels=32, depth=1, heads=2))


def uniforms(number: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, *SHAPE, generator=generator, dtype=torch.float64)


class KnowsPatterns(MaskedPrior):
    """The exact conditionals of four grids, any of which is as likely; label 1 is of the first."""

    def __init__(self, patterns: Tensor) -> None:
        super().__init__(PriorArchitecture(4, SHAPE, 2, channels=8, depth=1, heads=2))
        self.patterns = patterns

    def forward(self, codes: Tensor, conditions: Conditions = UNCONDITIONAL) -> Tensor:
        fits = ((codes[:, None] == self.patterns) | (codes[:, None] < 0)).flatten(2).all(2)
        if conditions.labels is not None:
            fits = fits & ((conditions.labels[:, None] != 1) | (torch.arange(4) == 0))
        holds = self.patterns == torch.arange(4)[:, None, None, None]  # (code, pattern, *place)
        return (torch.einsum("bp,cp...->bc...", fits.float(), holds.float()) + 1e-12).log()


@pytest.fixture
def patterns() -> Tensor:
    """Four grids, in which any code tells all others: k, and 3 - k in two columns."""
    code = torch.arange(4)[:, None, None].expand(4, *SHAPE)
    return torch.where(torch.arange(4) % 2 == 0, code, 3 - code)


@pytest.fixture
def exact(patterns: Tensor) -> MaskedPrior:
    return KnowsPatterns(patterns)


@pytest.mark.parametrize("steps", [1, 6])
def test_independent_codes_keep_their_frequencies(steps: int) -> None:
    """Some places are certain and are drawn first; rare codes are as frequent there as elsewhere.

    The output of an untrained network is the frequency of each code at its place.
    """
    prior, number = new_prior(3).eval(), 2000
    probability = torch.softmax(torch.randn(3, *SHAPE), 0)
    prior.frequency.copy_(probability.log())
    codes = prior.sample(uniforms(number), config=SampleConfig(steps=steps))
    for code in range(3):
        share, expected = (codes == code).double().mean(0), probability[code].double()
        deviation = (expected * (1 - expected) / number).sqrt()
        assert ((share - expected).abs() < 4.5 * deviation).all()
    # And no two places have to do with each other, but for chance.
    together = torch.corrcoef((codes == 0).double().flatten(1).T).fill_diagonal_(0)
    assert together.abs().max() < 5 / math.sqrt(number)


@pytest.mark.parametrize("steps", [6, PLACES])
def test_what_is_determined_by_other_codes_is_drawn_so(
    exact: MaskedPrior, patterns: Tensor, steps: int
) -> None:
    codes = exact.sample(uniforms(400), config=SampleConfig(steps=steps))
    which = (codes[:, None] == patterns).flatten(2).all(2)
    assert which.any(1).all()
    torch.testing.assert_close(which.float().mean(0), torch.full((4,), 0.25), atol=0.1, rtol=0)


def test_in_one_step_codes_are_drawn_independently(exact: MaskedPrior, patterns: Tensor) -> None:
    codes = exact.sample(uniforms(400), config=SampleConfig(steps=1))
    assert not (codes[:, None] == patterns).flatten(2).all(2).any()


def test_a_label_says_which_pattern_is_drawn(exact: MaskedPrior, patterns: Tensor) -> None:
    label = torch.ones(100, dtype=torch.int64)
    for guidance in (1.0, 3.0):
        config = SampleConfig(steps=6, guidance=guidance)
        codes = exact.sample(uniforms(100), Conditions(label), config)
        assert (codes == patterns[0]).all()


def test_the_likelihood_of_a_pattern_is_its_share(exact: MaskedPrior, patterns: Tensor) -> None:
    likely = exact.log_likelihood(patterns).flatten(1).sum(1).exp()
    torch.testing.assert_close(likely, torch.full((4,), 0.25))
    others = exact.log_likelihood(torch.randint(4, (50, *SHAPE))).flatten(1).sum(1).exp()
    assert others.max() < 1e-9


def test_one_known_code_completes_a_pattern(exact: MaskedPrior, patterns: Tensor) -> None:
    fixed = torch.full((4, *SHAPE), UNKNOWN)
    fixed[:, 2, 1] = patterns[:, 2, 1]
    codes = exact.sample(uniforms(4), config=SampleConfig(steps=2), fixed=fixed)
    assert torch.equal(codes, patterns)


@pytest.mark.parametrize("steps", [1, 5, 12, 100])
def test_sampling_takes_a_pass_for_each_step(steps: int) -> None:
    prior, calls = new_prior(3), []
    prior.register_forward_hook(lambda *_: calls.append(1))
    codes = prior.sample(uniforms(3), config=SampleConfig(steps=steps))
    assert len(calls) == min(steps, PLACES)
    assert codes.min() >= 0
    calls.clear()
    prior.log_likelihood(codes, UNCONDITIONAL)
    assert len(calls) == 8


def test_a_sample_does_not_depend_on_its_batch(exact: MaskedPrior) -> None:
    numbers = uniforms(20)
    together = exact.sample(numbers, config=ONE_AT_A_TIME)
    alone = torch.cat([exact.sample(one, config=ONE_AT_A_TIME) for one in numbers.split(1)])
    assert torch.equal(together, alone)


def test_the_network_learns_from_masked_codes_alone() -> None:
    """Codes that are known cost nothing, and the masked ones are not among what it sees."""
    prior = new_prior(5)
    seen: list[Tensor] = []
    prior.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    codes = torch.randint(5, (256, *SHAPE))
    loss = prior.training_loss(codes, UNCONDITIONAL)
    assert loss.item() == pytest.approx(math.log(5))
    masked = seen[0] == UNKNOWN
    assert torch.equal(seen[0][~masked], codes[~masked])
    number = masked.flatten(1).sum(1)
    assert number.min() >= 1
    # The mean of a cosine of an even angle, and half a place for rounding up.
    assert number.float().mean() == pytest.approx(PLACES * 2 / math.pi + 0.5, abs=0.6)
    assert number.unique().numel() > 9
