"""Priors of codes: causal, exact, sampled as they say, and able to learn what there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from medvq.prior.code_prior import UNKNOWN, CodePrior, Sampling, Step, log_likelihoods
from medvq.prior.pixelcnn import CausalConvolution, GatedPixelCNN
from medvq.prior.transformer import TransformerPrior
from monai.inferers import VQVAETransformerInferer
from monai.utils.ordering import Ordering
from torch import Tensor, nn

SIZE = 5
GRIDS = [(4, 5), (2, 3, 3)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Of networks this small a second thread only waits: ten times the processor's time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lived_in(prior: CodePrior) -> CodePrior:
    """With random weights everywhere, the last layer too, which starts at zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in prior.parameters():
            # Small where they are biases: a ReLU that is never on would hide what hangs on what.
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn_like(parameter) * scale)
        prior.frequency.normal_()
    return prior.eval()


def pixelcnn(shape: tuple[int, ...], above: bool = False) -> CodePrior:
    top = (7, tuple((side + 1) // 2 for side in shape)) if above else None
    return lived_in(GatedPixelCNN(SIZE, shape, 2, top, channels=8, depth=4, dropout=0.3))


def transformer(shape: tuple[int, ...], above: bool = False) -> CodePrior:
    top = (7, tuple((side + 1) // 2 for side in shape)) if above else None
    return lived_in(TransformerPrior(SIZE, shape, 2, top, channels=8, depth=2, heads=2))


def upper(prior: CodePrior, batch: int) -> Tensor | None:
    return None if prior.above is None else torch.randint(7, (batch, *prior.above[1]))


every = pytest.mark.parametrize(
    "prior",
    [
        pytest.param(make(shape, above), id=f"{make.__name__}-{len(shape)}d{'-above' * above}")
        for make in (pixelcnn, transformer)
        for shape in GRIDS
        for above in (False, True)
    ],
)


@every
def test_no_logit_moves_with_its_own_code_or_a_later_one(prior: CodePrior) -> None:
    codes, above = torch.randint(SIZE, (1, *prior.shape)), upper(prior, 1)
    with torch.inference_mode():
        logits = prior(codes, torch.tensor([1]), above).flatten(2)
        for place in range(codes.numel()):
            changed = codes.clone()
            changed.view(-1)[place] += 1
            changed %= SIZE
            moved = (prior(changed, torch.tensor([1]), above).flatten(2) != logits).any(1)[0]
            assert not moved[: place + 1].any()
            if place + 1 < codes.numel():
                assert moved[place + 1], "and the next code does hang on this one"


@every
def test_likelihood_is_the_product_of_conditionals_one_at_a_time(prior: CodePrior) -> None:
    codes, labels = torch.randint(SIZE, (3, *prior.shape)), torch.tensor([0, 1, UNKNOWN])
    above = upper(prior, 3)
    expected = torch.zeros(3, codes[0].numel())
    with torch.inference_mode():
        for place in range(codes[0].numel()):
            # Nothing of what is to come is known.
            known = codes.flatten(1).clone()
            known[:, place:] = 0
            logits = prior(known.view_as(codes), labels, above).flatten(2)[..., place]
            chosen = codes.flatten(1)[:, place]
            expected[:, place] = logits.softmax(1)[torch.arange(3), chosen].log()
        found = prior.log_likelihood(codes, labels, above).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every
def test_incremental_samples_are_those_of_whole_passes(prior: CodePrior) -> None:
    uniforms, labels = torch.rand(6, *prior.shape), torch.tensor([0, 1, 1, 0, UNKNOWN, 0])
    above = upper(prior, 6)
    quick = prior.sample(uniforms, labels, above)
    assert torch.equal(quick, prior.sample(uniforms, labels, above, incremental=False))
    assert len(quick.unique(dim=0)) == 6


@every
def test_guided_samples_are_those_of_whole_passes(prior: CodePrior) -> None:
    uniforms, labels = torch.rand(3, *prior.shape), torch.tensor([0, UNKNOWN, 1])
    above = upper(prior, 3)

    def drawn(guidance: float, given: Tensor | None = labels, **how: bool) -> Tensor:
        return prior.sample(uniforms, given, above, sampling=Sampling(guidance=guidance), **how)

    guided, plain = drawn(20.0), drawn(1.0)
    assert torch.equal(guided, drawn(20.0, incremental=False))
    assert torch.equal(plain, prior.sample(uniforms, labels, above))
    assert torch.equal(drawn(0.0), drawn(1.0, None)), "nothing of the label is left"
    # Where no label is known there is nothing to guide.
    assert torch.equal(guided[1], plain[1])
    assert not torch.equal(guided, plain)


class _TwoCoins(CodePrior):
    """One code of two: p(1) is .6 for label 1, .3 where there is none."""

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, above: Tensor | None = None
    ) -> Tensor:
        p = torch.where(self._label_index(labels, len(codes)) == 1, 0.6, 0.3)
        return torch.stack([1 - p, p], 1).log()[:, :, None, None]

    def steps(self, batch: int, labels: Tensor | None = None, above: Tensor | None = None) -> Step:
        return lambda codes, _: self(codes, labels, above).flatten(1)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_guidance_raises_the_ratio_that_the_label_makes_to_its_power(guidance: float) -> None:
    prior = _TwoCoins(2, (1, 1), classes=2)
    prior.place = nn.Parameter(torch.zeros(1))
    uniforms = ((torch.arange(10000) + 0.5) / 10000).view(-1, 1, 1)
    labels = torch.ones(10000, dtype=torch.int64)
    found = prior.sample(uniforms, labels, sampling=Sampling(guidance=guidance)).float().mean()
    likely = [p * (q / p) ** guidance for p, q in ((0.7, 0.4), (0.3, 0.6))]
    assert found == pytest.approx(likely[1] / sum(likely), abs=2e-4)


@every
def test_a_whole_sample_takes_the_work_of_one_pass(prior: CodePrior) -> None:
    """Counted in outputs of layers, since a clock proves nothing; not of one pass for each code."""
    above, outputs = upper(prior, 2), []

    def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output.numel())

    for module in prior.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        codes = prior.sample(torch.rand(2, *prior.shape), None, above).clone()
    sampling = sum(outputs)
    outputs.clear()
    prior(codes.clone(), None, above)
    assert sampling <= sum(outputs)


@every
def test_labels_and_the_level_above_are_heard(prior: CodePrior) -> None:
    codes = torch.randint(SIZE, (1, *prior.shape))
    above = upper(prior, 1)
    known = prior.log_likelihood(codes, torch.tensor([1]), above).detach()
    unknown = prior.log_likelihood(codes, torch.tensor([UNKNOWN]), above).detach()
    assert not torch.allclose(known, unknown)
    assert torch.equal(unknown, prior.log_likelihood(codes, None, above).detach())
    if above is not None:
        other = prior.log_likelihood(codes, None, (above + 1) % 7).detach()
        assert not torch.allclose(unknown, other)
        with pytest.raises(ValueError, match="level above"):
            prior(codes)


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("make", [pixelcnn, transformer])
def test_the_first_code_hears_codes_above_it_that_come_later(
    make: Callable[..., CodePrior], shape: tuple[int, ...]
) -> None:
    prior = make(shape, above=True)
    codes, above = torch.zeros((1, *shape), dtype=torch.int64), upper(prior, 1)
    assert above is not None
    changed = above.clone()
    later = (0, *(min(1, side - 1) for side in above.shape[1:]))
    changed[later] = (changed[later] + 1) % 7
    first, moved = (prior(codes, None, given).flatten(2)[..., 0] for given in (above, changed))
    assert not torch.equal(first, moved)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("model", [GatedPixelCNN, TransformerPrior])
def test_of_all_codes_of_all_levels_the_likelihoods_sum_to_one(
    model: Callable[..., CodePrior], dims: int
) -> None:
    grids = [(1,) * dims, (1,) * (dims - 2) + (1, 2), (2,) * 2 + (1,) * (dims - 2)]
    priors, above = [], None
    for grid in grids:
        priors.append(lived_in(model(2, grid, 0, above, channels=8, depth=2)))
        above = (2, grid)
    every = torch.cartesian_prod(*[torch.arange(2)] * 7).split([1, 2, 4], 1)
    levels = [codes.unflatten(1, grid) for codes, grid in zip(every, grids, strict=True)]
    found = log_likelihoods(priors, levels)
    assert [part.shape for part in found] == [codes.shape for codes in levels]
    likelihood = torch.cat([part.flatten(1) for part in found], 1).double().sum(1).exp()
    assert likelihood.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert likelihood.std() > 0.001


@pytest.mark.parametrize("make", [pixelcnn, transformer])
def test_only_what_is_asked_for_is_drawn_anew(make: object) -> None:
    prior = make((4, 5))
    codes, redo = torch.randint(SIZE, (40, 4, 5)), torch.rand(40, 4, 5) < 0.4
    completed = prior.complete(codes, redo, torch.rand(40, 4, 5))
    assert torch.equal(completed[~redo], codes[~redo])
    assert (completed[redo] != codes[redo]).float().mean() > 0.3


def fit(prior: CodePrior, batches: list[Tensor], rate: float = 3e-3) -> CodePrior:
    optimizer = torch.optim.Adam(prior.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for codes in batches:
        optimizer.zero_grad()
        (-prior.log_likelihood(codes).mean()).backward()
        optimizer.step()
        schedule.step()
    return prior.eval()


def fresh(name: str, size: int, shape: tuple[int, ...]) -> CodePrior:
    torch.manual_seed(0)
    if name == "pixelcnn":
        return GatedPixelCNN(size, shape, channels=16, depth=3, reach=1)
    return TransformerPrior(size, shape, channels=16, depth=2, heads=2)


@pytest.mark.parametrize("name", ["pixelcnn", "transformer"])
def test_of_one_image_it_samples_that_image(name: str) -> None:
    image = torch.randint(8, (1, 4, 4), generator=torch.Generator().manual_seed(3))
    prior = fit(fresh(name, 8, (4, 4)), [image.expand(4, 4, 4)] * 120, 1e-2)
    samples = prior.sample(torch.rand(16, 4, 4) * 0.98 + 0.01)
    assert torch.equal(samples, image.expand(16, 4, 4))


def chain(number: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """3x3 grids of a Markov chain in raster order, and its entropy in nats per code.

    The first code is any of four alike; each after it is the one before with probability .7, else
    one of the other three.
    """
    steps = torch.where(
        torch.rand(number, 9, generator=generator) < 0.7,
        0,
        torch.randint(1, 4, (number, 9), generator=generator),
    )
    steps[:, 0] = torch.randint(4, (number,), generator=generator)
    entropy = (math.log(4) + 8 * -(0.7 * math.log(0.7) + 0.3 * math.log(0.1))) / 9
    return (steps.cumsum(1) % 4).view(number, 3, 3), entropy


@pytest.mark.parametrize("name", ["pixelcnn", "transformer"])
def test_a_known_entropy_is_reached_within_two_percent(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    prior = fit(fresh(name, 4, (3, 3)), [chain(128, generator)[0] for _ in range(150)], 1e-2)
    codes, entropy = chain(4000, generator)
    with torch.inference_mode():
        found = -prior.log_likelihood(codes).mean().item()
    assert found == pytest.approx(entropy, rel=0.02)


def test_before_training_it_is_the_coding_by_position() -> None:
    codes = torch.randint(4, (50, 3, 3), generator=torch.Generator().manual_seed(0))
    prior = fresh("pixelcnn", 4, (3, 3))
    prior.start_from(codes, pseudo=0.5)
    overall = torch.bincount(codes.flatten(), minlength=4) + 0.5
    overall = overall / overall.sum()
    for row in range(3):
        for column in range(3):
            for code in range(4):
                count = (codes[:, row, column] == code).sum() + 0.5 * 4 * overall[code]
                example = torch.full((1, 3, 3), code)
                found = prior.log_likelihood(example)[0, row, column].exp()
                assert found.item() == pytest.approx(count.item() / (50 + 0.5 * 4), rel=1e-5)


def test_cut_kernels_are_masked_kernels() -> None:
    """Masks A and B as the paper has them, over a full kernel."""
    for axis, inclusive in ((0, False), (0, True), (1, False), (1, True)):
        causal = CausalConvolution((2, 3), axis, 2, 1, inclusive)
        weight = torch.zeros(3, 2, 3, 3)
        cut = causal.convolution.weight.detach()
        if axis == 0:
            weight[:, :, : 1 + inclusive] = cut
        else:
            weight[:, :, 1, : 1 + inclusive] = cut[:, :, 0]
        features = torch.randn(1, 2, 5, 6)
        expected = nn.functional.conv2d(features, weight, causal.convolution.bias, padding=1)
        torch.testing.assert_close(causal(features), expected)


class _Codes:
    """What MONAI's inferer wants of an autoencoder, of which the images are the codes."""

    num_embeddings = SIZE

    def index_quantize(self, images: Tensor) -> Tensor:
        return images


def test_the_transformer_is_monais_inferer() -> None:
    prior = lived_in(TransformerPrior(SIZE, (4, 5), channels=8, depth=2, heads=2))
    assert isinstance(prior, TransformerPrior)
    prior.frequency.zero_()
    codes = torch.randint(SIZE, (2, 4, 5))
    order = Ordering("raster_scan", 2, (1, 4, 5))
    logits = VQVAETransformerInferer()(codes, _Codes(), prior.network, order)
    ours = prior(codes).flatten(2).movedim(1, 2)
    torch.testing.assert_close(ours, logits[..., :SIZE])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(temperature=0.5), [0.25, 0.0625, 0.0225, 0.01]),
        (Sampling(top_k=2), [0.5, 0.25, 0, 0]),
        (Sampling(top_p=0.8), [0.5, 0.25, 0.15, 0]),
        (Sampling(top_p=0.75), [0.5, 0.25, 0, 0]),
        (Sampling(temperature=1e-3), [1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(sampling: Sampling, expected: list[float]) -> None:
    probability = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    uniform = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    drawn = sampling.draw(probability[order].log().expand(10000, 4), uniform)
    found = torch.bincount(drawn, minlength=4) / 10000
    wanted = torch.tensor(expected)[order] / sum(expected)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)


def test_impossible_codes_are_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, 3)
    ends = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert Sampling().draw(logits, ends).tolist() == [1, 1]
