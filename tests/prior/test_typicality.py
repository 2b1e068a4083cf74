"""The gate: its score, its threshold, and what it flags among phantoms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from medvq.datasets import phantom
from medvq.errors import UserError
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, Architecture
from medvq.prior.pixelcnn import GatedPixelCNN
from medvq.prior.typicality import TypicalityCheck, surprise
from numpy.typing import NDArray

RNG = np.random.default_rng(0)


def by_position(codes: torch.Tensor, size: int, pseudo: float = 0.1) -> GatedPixelCNN:
    """A prior that knows how often each code stands at each place, and nothing else."""
    torch.manual_seed(0)
    prior = GatedPixelCNN(size, codes.shape[1:], channels=4, depth=1)
    prior.start_from(codes, pseudo)
    return prior.eval()


def test_surprise_is_what_an_ideal_code_takes_in_bits() -> None:
    codes = torch.tensor([[[0, 1]], [[0, 1]], [[0, 0]], [[0, 1]]])
    bits = surprise(by_position(codes, 2, pseudo=1e-9), codes, batch=3)
    expected = -np.log2([[[1, 0.75]], [[1, 0.75]], [[1, 0.25]], [[1, 0.75]]])
    np.testing.assert_allclose(bits, expected, atol=1e-5)


def test_only_the_most_surprising_quarter_of_the_places_counts() -> None:
    bits = np.zeros((2, 4, 4))
    bits[0, 0] = [1, 2, 3, 4]
    bits[1] = 1
    assert TypicalityCheck.score(bits).tolist() == [2.5, 1.0]
    assert TypicalityCheck.score(np.array([[[3.0]]])).tolist() == [3.0]


@pytest.mark.parametrize("images", [5, 99, 100, 101, 250, 5000])
def test_the_threshold_is_the_lowest_that_one_in_a_hundred_exceeds(images: int) -> None:
    reference = RNG.random((images, 2, 2))
    gate = TypicalityCheck.calibrate(reference)
    scores = np.sort(TypicalityCheck.score(reference))
    assert (scores > gate.threshold).mean() <= 0.01
    lower = scores[scores < gate.threshold][-1]
    assert (scores > lower).mean() > 0.01
    judged = gate.judge(scores)
    assert (judged["images"], judged["reference_images"]) == (images, images)
    assert judged["flagged"] == (scores > gate.threshold).sum()
    assert judged["share"] == pytest.approx(judged["reference_share"], abs=1e-3)
    assert judged["median"] == np.median(scores)
    assert judged["reference_median"] == pytest.approx(np.median(scores), abs=1e-9)


def test_fresh_images_are_flagged_as_often_as_the_reference_is() -> None:
    gate = TypicalityCheck.calibrate(RNG.random((4000, 4, 4)), false_alarms=0.05)
    fresh = gate.judge(TypicalityCheck.score(RNG.random((4000, 4, 4))))
    assert fresh["share"] == pytest.approx(0.05, abs=0.015)


def test_a_gate_is_read_as_it_was_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without a gate; run 'prior' with FORCE=1"):
        TypicalityCheck.read(tmp_path)
    gate = TypicalityCheck.calibrate(RNG.random((30, 2, 2)))
    gate.write(tmp_path)
    assert TypicalityCheck.read(tmp_path) == gate
    large = TypicalityCheck.calibrate(RNG.random((3000, 2, 2)))
    assert len(large.scores) == 1001
    large.write(tmp_path)
    assert (tmp_path / "typicality.json").stat().st_size < 40_000


def phantoms(number: int, first: int) -> NDArray[np.uint8]:
    """Normal phantoms of one scanner, 48 x 48."""
    images = []
    for place in range(first, first + number):
        key = (0, 0, place)
        subject = phantom.Subject(place, "train", "NORMAL", phantom.SCANNERS["A"], key)
        rng = subject.rng(4)
        view = phantom.pose(subject.scanner, 96, rng)
        picture = phantom.draw(subject, phantom.grow(subject.rng(2), "NORMAL"), view, rng)
        images.append(cv2.resize(picture, (48, 48), interpolation=cv2.INTER_AREA))
    return np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)


def test_of_phantoms_those_upside_down_and_inverted_are_flagged() -> None:
    torch.manual_seed(0)
    shape = {"widths": (8, 8), "residual_levels": 0, "codebook_size": 16, "codebook_dim": 8}
    model = VQVAE(Architecture(**shape, batch_norm=False))
    images = phantoms(320, 1)
    model(to_network(to_unit(images[:120])))
    model.eval()

    def codes_of(images: NDArray[Any]) -> torch.Tensor:
        with torch.inference_mode():
            return model.encode(to_network(to_unit(np.ascontiguousarray(images))))[0].clone()

    train, reference, fresh = np.split(images, [120, 220])
    prior = by_position(codes_of(train), 16)
    gate = TypicalityCheck.calibrate(surprise(prior, codes_of(reference)))

    def share(images: NDArray[Any]) -> float:
        return float(gate.judge(TypicalityCheck.score(surprise(prior, codes_of(images))))["share"])

    assert share(fresh) <= 0.06
    assert share(fresh[:, ::-1]) > 0.95
    assert share(255 - fresh) > 0.95
