"""The study's other quantizers against slow references and closed forms."""

from __future__ import annotations

import pytest
import torch
from medvq.config_file import config_file, load_config

from benchmarks.codec import arms_of
from benchmarks.codec_quantizers import (
    ComposedQuantizer,
    FiniteScalarQuantizer,
    ResidualQuantizer,
    composed_arms,
    equal_alphabets,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def turns() -> ResidualQuantizer:
    quantizer = ResidualQuantizer([6, 4, 3], 5, decay=0.9, commitment=0.7)
    quantizer(torch.randn(4, 5, 8, 8))  # codebooks start
    return quantizer.eval()


def test_every_quantizer_takes_the_nearest_code_of_what_is_left(turns: ResidualQuantizer) -> None:
    features = torch.randn(2, 5, 3, 4)
    out = turns(features)
    for batch, row, column in torch.cartesian_prod(*map(torch.arange, (2, 3, 4))).tolist():
        left, code = features[batch, :, row, column], 0
        for quantizer in turns.quantizers:
            digit = int((quantizer.codebook - left).norm(dim=1).argmin())
            left = left - quantizer.codebook[digit]
            code = code * len(quantizer.codebook) + digit
        assert out.codes[batch, row, column] == code
        expected = features[batch, :, row, column] - left
        torch.testing.assert_close(out.values[batch, :, row, column], expected)
    torch.testing.assert_close(turns.decode(out.codes), out.values)


def test_gradients_pass_straight_through_and_every_quantizer_commits(
    turns: ResidualQuantizer,
) -> None:
    features, weights = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 5, 4)
    out = turns(features)
    ((weights * out.values).sum() + out.loss).backward()
    left, away = features.detach(), torch.zeros(2, 5, 4)
    for quantizer in turns.quantizers:
        left = left - quantizer(left).values
        away += left
    torch.testing.assert_close(features.grad, weights + 2 * 0.7 * away / features.numel())


def test_sums_of_a_coarse_and_a_fine_part_are_learnt_without_error() -> None:
    coarse, fine = 100 * torch.eye(4), torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    sums = (coarse[:, None] + fine).flatten(0, 1)
    quantizer = ResidualQuantizer([4, 2], 4, decay=0.5, commitment=0.25)
    for _ in range(40):
        quantizer(sums[torch.randperm(8).repeat(8)].T[None])
    out = quantizer.eval()(sums.T[None])
    torch.testing.assert_close(out.values[0].T, sums, atol=0.05, rtol=0)
    assert len(out.codes.unique()) == 8


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8])
def test_a_channel_has_as_many_evenly_spaced_levels(levels: int) -> None:
    quantizer = FiniteScalarQuantizer([levels, 3])
    line = torch.linspace(-20, 20, 10_001)
    out = quantizer(torch.stack([line, torch.zeros_like(line)])[None])
    half = levels // 2
    expected = (torch.arange(levels) - half) / half
    torch.testing.assert_close(out.values[0, 0].unique(), expected)
    assert (out.values[0, 0].diff() >= 0).all()
    assert (out.values[0, 1] == 0).all()
    assert out.loss == 0
    assert torch.equal(quantizer(torch.zeros(1, 2, 1)).values, torch.zeros(1, 2, 1))


def test_the_gradient_of_a_scalar_is_that_of_its_bound() -> None:
    quantizer = FiniteScalarQuantizer([5, 5])
    features = torch.randn(3, 2, 4, requires_grad=True)
    quantizer(features).values.sum().backward()
    reach = 2 * (1 + 1e-3)  # of five levels, two on either side
    expected = reach / 2 * (1 - features.detach().tanh().square())
    torch.testing.assert_close(features.grad, expected)


@pytest.mark.parametrize(
    "quantizer",
    [
        FiniteScalarQuantizer([8, 5, 5]),
        ResidualQuantizer([8, 5, 5], 6, decay=0.9, commitment=0.25),
    ],
)
def test_every_code_has_its_own_vector_and_digits(quantizer: ComposedQuantizer) -> None:
    codes = torch.arange(200).view(2, 100)
    vectors = quantizer.decode(codes).movedim(1, -1).reshape(200, -1)
    assert len(vectors.unique(dim=0)) == 200 == quantizer.size
    assert torch.equal(quantizer.join(quantizer.digits(codes)), codes)


def test_scalars_are_coded_as_they_are_decoded() -> None:
    quantizer = FiniteScalarQuantizer([8, 5, 4])
    out = quantizer(3 * torch.randn(50, 3, 6, 6))
    torch.testing.assert_close(quantizer.decode(out.codes), out.values)
    assert len(out.codes.unique()) > 120


@pytest.mark.parametrize("bits", range(2, 13))
def test_all_have_the_bits_of_the_flat_model(bits: int) -> None:
    flat = arms_of(load_config(config_file("kermany-reconstruction")))["flat"]
    trained = flat.pretrain.model_copy(update={"codebook_size": 2**bits})
    arms = composed_arms(flat.model_copy(update={"pretrain": trained}))
    for config, quantizer in arms.values():
        assert quantizer.size == 2**bits
        assert quantizer.dim == config.pretrain.codebook_dim
        assert max(quantizer.alphabets) <= 2 * min(quantizer.alphabets)
    assert max(equal_alphabets(bits, 3)) <= 2 ** -(-bits // 3)
