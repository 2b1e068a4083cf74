"""Priors of codes: causal, exact, sampled as they say, and able to learn what there is."""

from __future__ import annotations

import math

import pytest
import torch
from factories.priors import frequency_prior
from medvq.config import SampleConfig
from medvq.prior.code_prior import (
    UNKNOWN,
    AutoregressivePrior,
    CodePrior,
    Conditions,
    PriorArchitecture,
    draw_codes,
    negative_log_likelihood,
)
from medvq.prior.codes import bits_per_code
from medvq.prior.masked import MaskedPrior
from medvq.prior.pixelcnn import CausalConvolution, GatedPixelCNN
from medvq.prior.transformer import TransformerPrior
from monai.inferers import VQVAETransformerInferer
from monai.utils.ordering import Ordering
from torch import Tensor, nn

SIZE, SIZE_ABOVE = 5, 7
GRIDS = [(4, 5), (2, 3, 3)]
AUTOREGRESSIVE: list[type[AutoregressivePrior]] = [GatedPixelCNN, TransformerPrior]
MODELS: list[type[CodePrior]] = [*AUTOREGRESSIVE, MaskedPrior]


def with_random_weights(prior: CodePrior) -> CodePrior:
    """Randomise all weights, those of the last layer too, which are zero at first."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in prior.parameters():
            # Small biases: a ReLU that is never on would hide what depends on what.
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn_like(parameter) * scale)
        prior.frequency.normal_()
    return prior.eval()


def random_prior(model: type[CodePrior], shape: tuple[int, ...], above: bool = False) -> CodePrior:
    grid_above = tuple((side + 1) // 2 for side in shape)
    return with_random_weights(
        model(
            PriorArchitecture(
                SIZE, shape, 2, (SIZE_ABOVE, grid_above) if above else None,
                channels=8, depth=4 if model is GatedPixelCNN else 2, dropout=0.3, heads=2,
            )
        )
    )  # fmt: skip


def conditions_of(prior: CodePrior, labels: list[int]) -> Conditions:
    above = prior.architecture.above
    codes_above = None if above is None else torch.randint(SIZE_ABOVE, (len(labels), *above[1]))
    return Conditions(torch.tensor(labels), codes_above)


def sample_by_whole_passes(
    prior: CodePrior, uniforms: Tensor, conditions: Conditions, guidance: float = 1.0
) -> Tensor:
    codes = torch.zeros(uniforms.shape, dtype=torch.int64)
    for place in range(prior.places):
        logits, unlabelled = (
            prior(codes, c).flatten(2)[:, :, place]
            for c in (conditions, conditions._replace(labels=None))
        )
        guided = logits if guidance == 1 else unlabelled + guidance * (logits - unlabelled)
        codes.flatten(1)[:, place] = draw_codes(
            guided, uniforms.flatten(1)[:, place], SampleConfig()
        )
    return codes


def every(models: list[type[CodePrior]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "prior",
        [
            pytest.param(
                random_prior(model, shape, above),
                id=f"{model.name}-{len(shape)}d{'-above' * above}",
            )
            for model in models
            for shape in GRIDS
            for above in (False, True)
        ],
    )


every_prior, every_autoregressive_prior = every(MODELS), every([*AUTOREGRESSIVE])


@torch.inference_mode()
@every_autoregressive_prior
def test_no_logit_depends_on_its_own_code_or_a_later_one(prior: CodePrior) -> None:
    # Several images: in one alone all rectifiers behind a code may be closed.
    codes, conditions = torch.randint(SIZE, (8, *prior.shape)), conditions_of(prior, 4 * [0, 1])
    logits = prior(codes, conditions).flatten(2)
    for place in range(prior.places):
        changed = codes.clone()
        changed.flatten(1)[:, place] += 1
        moved = (prior(changed % SIZE, conditions).flatten(2) != logits).any(1).any(0)
        assert not moved[: place + 1].any()
        if place + 1 < prior.places:
            assert moved[place + 1], "and the next code depends on this one"


@every_autoregressive_prior
def test_likelihood_is_the_product_of_conditionals_one_at_a_time(prior: CodePrior) -> None:
    codes, conditions = torch.randint(SIZE, (3, *prior.shape)), conditions_of(prior, [0, 1, -1])
    expected = torch.zeros(3, prior.places)
    with torch.inference_mode():
        for place in range(prior.places):
            known = codes.flatten(1).clone()
            known[:, place:] = 0
            logits = prior(known.view_as(codes), conditions).flatten(2)[..., place]
            chosen = codes.flatten(1)[:, place]
            expected[:, place] = logits.softmax(1)[torch.arange(3), chosen].log()
        computed = prior.log_likelihood(codes, conditions).flatten(1)
    torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-5)
    bits = negative_log_likelihood(prior, codes, conditions, batch=2).reshape(3, -1)
    torch.testing.assert_close(torch.from_numpy(2**-bits).float(), expected.exp())


@torch.inference_mode()
@every_autoregressive_prior
def test_incremental_samples_are_those_of_whole_passes(prior: CodePrior) -> None:
    labels = [0, 1, 1, 0, UNKNOWN, 0]
    uniforms, conditions = torch.rand(6, *prior.shape), conditions_of(prior, labels)
    plain = prior.sample(uniforms, conditions)
    assert torch.equal(plain, sample_by_whole_passes(prior, uniforms, conditions))
    assert len(plain.unique(dim=0)) == 6
    guided = prior.sample(uniforms, conditions, SampleConfig(guidance=20))
    assert torch.equal(guided, sample_by_whole_passes(prior, uniforms, conditions, guidance=20))
    assert not torch.equal(guided, plain)
    assert torch.equal(guided[4], plain[4]), "without a label there is nothing to guide"
    none = prior.sample(uniforms, conditions, SampleConfig(guidance=0))
    assert torch.equal(none, prior.sample(uniforms, conditions._replace(labels=None)))


@torch.inference_mode()
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_guidance_raises_the_likelihood_ratio_of_the_label_to_its_power(guidance: float) -> None:
    prior, label = random_prior(GatedPixelCNN, (1, 1)), torch.ones(10000, dtype=torch.int64)
    uniforms = ((torch.arange(10000) + 0.5) / 10000).view(-1, 1, 1)
    codes = prior.sample(uniforms, Conditions(label), SampleConfig(guidance=guidance))
    unlabelled, labelled = (
        prior(codes[:1], Conditions(known)).flatten().softmax(0) for known in (None, label[:1])
    )
    likelihood = unlabelled * (labelled / unlabelled) ** guidance
    frequency = torch.bincount(codes.flatten(), minlength=SIZE) / 10000
    torch.testing.assert_close(frequency, likelihood / likelihood.sum(), atol=2e-4, rtol=0)


@every_autoregressive_prior
def test_a_whole_sample_takes_the_work_of_one_pass(prior: CodePrior) -> None:
    """Counted in outputs of layers, since a clock proves nothing; not one pass for each code."""
    conditions, outputs = conditions_of(prior, [0, 0]), []
    hooks = [
        module.register_forward_hook(lambda *call: outputs.append(call[2].numel()))
        for module in prior.modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear)
    ]
    codes = prior.sample(torch.rand(2, *prior.shape), conditions).clone()
    sampling = sum(outputs)
    outputs.clear()
    prior(codes, conditions)
    for hook in hooks:
        hook.remove()
    assert sampling <= sum(outputs)


@every_prior
def test_likelihoods_depend_on_labels_and_on_the_whole_level_above(prior: CodePrior) -> None:
    codes, known = torch.randint(SIZE, (1, *prior.shape)), conditions_of(prior, [1])
    unknown, none = (known._replace(labels=labels) for labels in (torch.tensor([UNKNOWN]), None))
    with torch.inference_mode():
        unlabelled = prior.log_likelihood(codes, none)
        assert not torch.allclose(prior.log_likelihood(codes, known), unlabelled)
        assert torch.equal(prior.log_likelihood(codes, unknown), unlabelled)
        if known.codes_above is None:
            return
        with pytest.raises(ValueError, match="level above"):
            prior.log_likelihood(codes)
        # The first code depends on codes above it that come later in raster order.
        changed = known.codes_above.clone()
        later = (0, *(min(1, side - 1) for side in changed.shape[1:]))
        changed[later] = (changed[later] + 1) % SIZE_ABOVE
        moved = prior.log_likelihood(codes, Conditions(None, changed))
    assert moved.flatten()[0] != unlabelled.flatten()[0]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_likelihoods_of_all_codes_of_all_levels_sum_to_one(
    model: type[CodePrior], dims: int
) -> None:
    grids = [(1,) * dims, (1,) * (dims - 2) + (1, 2), (2,) * 2 + (1,) * (dims - 2)]
    above = [None, *((2, grid) for grid in grids[:-1])]
    priors = [
        with_random_weights(model(PriorArchitecture(2, grid, 0, over, channels=8, depth=2)))
        for grid, over in zip(grids, above, strict=True)
    ]
    every_code = torch.cartesian_prod(*[torch.arange(2)] * 7).split([1, 2, 4], 1)
    levels = [codes.unflatten(1, grid) for codes, grid in zip(every_code, grids, strict=True)]
    bits = [
        negative_log_likelihood(prior, codes, Conditions(None, over)).reshape(len(codes), -1)
        for prior, codes, over in zip(priors, levels, [None, *levels[:-1]], strict=True)
    ]
    likelihood = 2.0 ** -sum(part.sum(1) for part in bits)
    assert likelihood.sum() == pytest.approx(1.0, abs=1e-5)
    assert likelihood.std() > 0.001
    assert bits_per_code(priors, levels) == pytest.approx([part.mean() for part in bits])


@pytest.mark.parametrize("model", MODELS)
def test_fixed_codes_are_kept_and_the_others_drawn(model: type[CodePrior]) -> None:
    prior = random_prior(model, (4, 5))
    codes, redo = torch.randint(SIZE, (40, 4, 5)), torch.rand(40, 4, 5) < 0.4
    completed = prior.sample(torch.rand(40, 4, 5), fixed=codes.masked_fill(redo, UNKNOWN))
    assert torch.equal(completed[~redo], codes[~redo])
    assert (completed[redo] != codes[redo]).float().mean() > 0.3


def fit(model: type[CodePrior], size: int, batches: list[Tensor]) -> CodePrior:
    torch.manual_seed(0)
    shape = (*batches[0].shape[1:],)
    prior = model(PriorArchitecture(size, shape, channels=16, heads=2))
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for codes in batches:
        optimizer.zero_grad()
        (-prior.log_likelihood(codes).mean()).backward()
        optimizer.step()
        schedule.step()
    return prior.eval()


def markov_chain(number: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """Return 3x3 grids of a Markov chain in raster order, and its entropy in nats per code.

    The first code is any of four with equal probability; each after it is the one before with
    probability 0.7, else one of the other three.
    """
    steps = torch.where(
        torch.rand(number, 9, generator=generator) < 0.7,
        0,
        torch.randint(1, 4, (number, 9), generator=generator),
    )
    steps[:, 0] = torch.randint(4, (number,), generator=generator)
    entropy = (math.log(4) + 8 * -(0.7 * math.log(0.7) + 0.3 * math.log(0.1))) / 9
    return (steps.cumsum(1) % 4).view(number, 3, 3), entropy


@pytest.mark.parametrize("model", AUTOREGRESSIVE)
def test_a_known_entropy_is_reached_within_two_percent(model: type[CodePrior]) -> None:
    generator = torch.Generator().manual_seed(0)
    prior = fit(model, 4, [markov_chain(128, generator)[0] for _ in range(150)])
    codes, entropy = markov_chain(4000, generator)
    nats = negative_log_likelihood(prior, codes).mean() * math.log(2)
    assert nats == pytest.approx(entropy, rel=0.02)


def test_an_untrained_prior_gives_each_code_its_smoothed_frequency_at_its_place() -> None:
    codes = torch.randint(4, (50, 3, 3), generator=torch.Generator().manual_seed(0))
    prior = frequency_prior(codes, 4, pseudo_count=0.5)
    overall = torch.bincount(codes.flatten(), minlength=4) + 0.5
    overall = overall / overall.sum()
    for code in range(4):
        count = (codes == code).sum(0) + 0.5 * 4 * overall[code]
        likelihood = prior.log_likelihood(torch.full((1, 3, 3), code))[0].exp()
        torch.testing.assert_close(likelihood, count / (50 + 0.5 * 4))


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


class CodesAsImages:
    """What MONAI's inferer wants of an autoencoder, of which the images are the codes."""

    num_embeddings = SIZE

    def index_quantize(self, images: Tensor) -> Tensor:
        return images


def test_logits_of_the_transformer_are_those_of_monais_inferer() -> None:
    architecture = PriorArchitecture(SIZE, (4, 5), channels=8, depth=2, heads=2)
    prior = TransformerPrior(architecture)
    with_random_weights(prior).frequency.zero_()
    codes = torch.randint(SIZE, (2, 4, 5))
    order = Ordering("raster_scan", 2, (1, 4, 5))
    logits = VQVAETransformerInferer()(codes, CodesAsImages(), prior.network, order)
    torch.testing.assert_close(
        prior(codes, Conditions()).flatten(2).movedim(1, 2), logits[..., :SIZE]
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SampleConfig(), [0.5, 0.25, 0.15, 0.1]),
        (SampleConfig(temperature=0.5), [0.25, 0.0625, 0.0225, 0.01]),
        (SampleConfig(top_k=2), [0.5, 0.25, 0, 0]),
        (SampleConfig(top_p=0.8), [0.5, 0.25, 0.15, 0]),
        (SampleConfig(top_p=0.75), [0.5, 0.25, 0, 0]),
        (SampleConfig(temperature=0.05), [1, 0, 0, 0]),
    ],
)
def test_drawn_codes_follow_the_distribution(config: SampleConfig, expected: list[float]) -> None:
    probability = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    uniform = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    codes = draw_codes(probability[order].log().expand(10000, 4), uniform, config)
    frequency = torch.bincount(codes, minlength=4) / 10000
    torch.testing.assert_close(
        frequency, torch.tensor(expected)[order] / sum(expected), atol=2e-4, rtol=0
    )


def test_impossible_codes_are_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, 3)
    ends = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert draw_codes(logits, ends, SampleConfig()).tolist() == [1, 1]


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("kind", [TransformerPrior, MaskedPrior])
def test_the_last_hidden_states_are_what_logits_are_made_of(
    kind: type[CodePrior], above: bool
) -> None:
    prior = random_prior(kind, (3, 4), above=above)
    assert isinstance(prior, TransformerPrior | MaskedPrior)
    codes = torch.randint(prior.architecture.size, (5, 3, 4))
    conditions = conditions_of(prior, [0, 1, -1, 0, 1])
    with torch.no_grad():
        states = prior.hidden_states(codes, conditions)
        last = states[-1].movedim(1, -1)
        if isinstance(prior, MaskedPrior):
            logits = prior.to_logits(prior.norm(last))
        else:
            logits = prior.network.to_logits(last)[..., : prior.architecture.size]
        expected = prior(codes, conditions)
    assert len(states) == prior.architecture.depth
    torch.testing.assert_close(logits.movedim(-1, 1) + prior.frequency, expected)


@torch.no_grad()
def test_hidden_states_of_the_masked_model_know_codes_on_both_sides() -> None:
    prior = random_prior(MaskedPrior, (3, 4))
    assert isinstance(prior, MaskedPrior)
    codes = torch.randint(prior.architecture.size, (1, 3, 4))
    changed = codes.clone()
    changed[0, 1, 2] = (codes[0, 1, 2] + 1) % prior.architecture.size
    before, after = (prior.hidden_states(one)[0][0] for one in (codes, changed))
    assert (before - after).abs().amax(0).gt(1e-6).all()
