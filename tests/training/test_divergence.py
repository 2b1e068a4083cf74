"""What ends a training: losses that are no numbers or explode, and codebooks of a single code."""

from __future__ import annotations

import math

import pytest
import torch
from medvq.config import ContrastConfig, PretrainConfig
from medvq.errors import UserError
from medvq.training.divergence import (
    check_collapse,
    check_divergence,
    check_finite,
    refuse_batch,
)

CONFIG = PretrainConfig(learning_rate=0.5)
RATE = "pretrain.learning_rate=0.5"
TERMS = ("reconstruction", "contrast", "commitment")


def epoch(number: int, **terms: float) -> dict[str, float]:
    losses = {"reconstruction": 0.5, "contrast": 2.0, "commitment": 0.25} | terms
    return {"epoch": float(number), **losses, "loss": sum(losses.values())}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    with pytest.raises(UserError, match=r"epoch 3 \(the loss is .*learning_rate=0\.5"):
        check_finite(loss, 3, RATE)
    check_finite(1e30, 3, RATE)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (
            {"a1": "", "b2": ""},
            f"; lower {RATE}, since no image of it is at fault. The epochs before are kept. They "
            "are, by image_id in manifest.csv: a1, b2",
        ),
        (
            {"a1": "constant", "b2": "", "c3": "not finite once augmented"},
            ": of its images a1 is constant, c3 is not finite once augmented (image_id in "
            f"manifest.csv); leave such images out, or lower {RATE}. The epochs before are kept",
        ),
    ],
)
def test_a_batch_names_its_images_and_those_at_fault(faults: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        refuse_batch(math.inf, 7, faults, 3, RATE)
    assert str(refused.value) == f"training diverged in epoch 3, batch 7 (the loss is inf){message}"


def test_a_loss_of_ten_times_the_best_is_refused() -> None:
    before = [epoch(1), epoch(2, contrast=1.0), epoch(3)]
    # 17.5 is ten times the 1.75 of the second epoch.
    check_divergence(epoch(4, commitment=15.0), before, TERMS, RATE)
    with pytest.raises(UserError) as refused:
        check_divergence(epoch(4, commitment=16.0), before, TERMS, RATE)
    assert str(refused.value) == (
        "training diverged in epoch 4: the loss is 18.5 after 1.75 in epoch 2, and its commitment "
        "grew most; lower pretrain.learning_rate=0.5. The epochs before are kept"
    )


def test_a_first_epoch_diverges_from_its_first_batch() -> None:
    first = [epoch(0)]
    # 27.5 is ten times the 2.75 of the first batch.
    check_divergence(epoch(1, reconstruction=25.25), first, TERMS, RATE)
    with pytest.raises(UserError) as refused:
        check_divergence(epoch(1, reconstruction=25.5), first, TERMS, RATE)
    assert str(refused.value) == (
        "training diverged in epoch 1: the loss is 27.8 after 2.75 in the first batch, and its "
        "reconstruction grew most; lower pretrain.learning_rate=0.5"
    )


# The perplexities of 10 and of 11 in 100 are 1.38 and 1.41.
@pytest.mark.parametrize(("rest", "collapsed"), [(2, True), (10, True), (11, False)])
def test_a_single_code_is_a_collapse(rest: int, collapsed: bool) -> None:
    single, even = torch.zeros(16, dtype=torch.int64), torch.full((8,), 7)
    single[3], single[5] = 100 - rest, rest
    check_collapse([even], 2, CONFIG)
    if not collapsed:
        check_collapse([even, single], 2, CONFIG)
        return
    with pytest.raises(
        UserError, match="codebook of level 1 collapsed in epoch 2: 2 of 16"
    ) as refused:
        check_collapse([even, single], 2, CONFIG)
    assert "lower pretrain.learning_rate=0.5" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_codes_are_no_collapse() -> None:
    check_collapse([torch.tensor([5, 5])], 1, CONFIG)


def test_a_training_towards_nothing_is_the_cause_that_is_named() -> None:
    nothing = PretrainConfig(reconstruction=0.0, contrast=ContrastConfig(weight=0.0))
    with pytest.raises(UserError, match=r"set pretrain\.reconstruction above 0"):
        check_collapse([torch.tensor([0, 9])], 1, nothing)
