"""The typicality check: its score, its threshold, and what it flags among phantoms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from factories.priors import frequency_prior
from medvq.datasets import phantom_drawing as phantom
from medvq.datasets.phantom import Subject
from medvq.errors import UserError
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, Architecture
from medvq.prior.code_prior import negative_log_likelihood
from medvq.prior.typicality import TypicalityCheck, expected_share
from numpy.typing import NDArray
from torch import Tensor

RNG = np.random.default_rng(0)


def test_negative_log_likelihood_is_the_length_of_an_ideal_code_in_bits() -> None:
    codes = torch.tensor([[[0, 1]], [[0, 1]], [[0, 0]], [[0, 1]]])
    bits = negative_log_likelihood(frequency_prior(codes, 2, 1e-9), codes, batch=3)
    expected = -np.log2([[[1, 0.75]], [[1, 0.75]], [[1, 0.25]], [[1, 0.75]]])
    np.testing.assert_allclose(bits, expected, atol=1e-5)


def test_the_score_is_the_mean_of_the_least_likely_quarter_of_the_places() -> None:
    bits = np.zeros((2, 4, 4))
    bits[0, 0] = [1, 2, 3, 4]
    bits[1] = 1
    assert TypicalityCheck.score(bits).tolist() == [2.5, 1.0]
    assert TypicalityCheck.score(np.array([[[3.0]]])).tolist() == [3.0]


@pytest.mark.parametrize("images", [5, 99, 100, 101, 250, 5000])
def test_the_threshold_is_the_lowest_that_one_in_a_hundred_exceeds(images: int) -> None:
    reference = RNG.random((images, 2, 2))
    check = TypicalityCheck.calibrate(reference)
    scores = np.sort(TypicalityCheck.score(reference))
    assert (scores > check.threshold).mean() <= 0.01
    lower = scores[scores < check.threshold][-1]
    assert (scores > lower).mean() > 0.01
    judged = check.judge(scores)
    assert (judged.images, judged.reference_images) == (images, images)
    assert judged.flagged == (scores > check.threshold).sum()
    assert judged.share == pytest.approx(judged.reference_share, abs=1e-3)
    assert judged.median == np.median(scores)
    assert judged.reference_median == pytest.approx(np.median(scores), abs=1e-9)


@pytest.mark.parametrize("images", [60, 100, 637])
def test_the_interval_of_the_flagged_share_holds_it_in_95_of_100_references(images: int) -> None:
    """Of even scores, the share beyond a threshold is one less the threshold."""
    low, high = expected_share(images)
    references = np.random.default_rng(0).random((1000, images, 1, 1))
    beyond = np.array([1 - TypicalityCheck.calibrate(one).threshold for one in references])
    assert ((low <= beyond) & (beyond <= high)).mean() == pytest.approx(0.95, abs=0.02)
    assert low < 0.01 < high or images == 60


def test_images_like_the_reference_are_flagged_as_often_as_it_is() -> None:
    check = TypicalityCheck.calibrate(RNG.random((4000, 4, 4)))
    judged = check.judge(TypicalityCheck.score(RNG.random((40000, 4, 4))))
    assert judged.share == pytest.approx(0.01, abs=0.005)


def test_a_check_is_read_as_it_was_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without typicality.json; run 'prior' with FORCE=1"):
        TypicalityCheck.read(tmp_path)
    check = TypicalityCheck.calibrate(RNG.random((30, 2, 2)))
    check.write(tmp_path)
    assert TypicalityCheck.read(tmp_path) == check
    large = TypicalityCheck.calibrate(RNG.random((3000, 2, 2)))
    assert len(large.scores) == 1001
    large.write(tmp_path)
    assert (tmp_path / "typicality.json").stat().st_size < 40_000


def phantoms(number: int, first: int) -> NDArray[np.uint8]:
    """Normal phantoms of one scanner, 48 x 48."""
    images = []
    for place in range(first, first + number):
        key = (0, 0, place)
        subject = Subject(place, "train", "NORMAL", phantom.SCANNERS["A"], key)
        rng = subject.rng(4)
        view = phantom.pose(subject.scanner, 96, rng)
        picture = phantom.draw(phantom.grow(subject.rng(2), "NORMAL", 0.0), view, rng)
        images.append(cv2.resize(picture, (48, 48), interpolation=cv2.INTER_AREA))
    return np.asarray(np.rint(255 * np.clip(images, 0, 1)), np.uint8)


def test_phantoms_upside_down_and_inverted_are_flagged() -> None:
    torch.manual_seed(0)
    shape = Architecture(
        widths=(8, 8), residual_levels=0, codebook_size=16, codebook_dim=8, batch_norm=False
    )
    model = VQVAE(shape)
    images = phantoms(320, 1)
    model(to_network(to_unit(images[:120])))
    model.eval()

    def encode(images: NDArray[Any]) -> Tensor:
        with torch.inference_mode():
            return model.encode(to_network(to_unit(np.ascontiguousarray(images))))[0].clone()

    train, reference, others = np.split(images, [120, 220])
    prior = frequency_prior(encode(train), 16)
    check = TypicalityCheck.calibrate(negative_log_likelihood(prior, encode(reference)))

    def share(images: NDArray[Any]) -> float:
        bits = negative_log_likelihood(prior, encode(images))
        return check.judge(TypicalityCheck.score(bits)).share

    assert share(others) <= 0.06
    assert share(others[:, ::-1]) > 0.95
    assert share(255 - others) > 0.95
