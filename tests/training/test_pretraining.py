"""Which images pretraining takes: whole subjects, nested shares, and shuffled subjects."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from factories.pretraining import train
from medvq.errors import UserError
from medvq.training.pretraining import share_of_subjects, shuffle_among_subjects


def test_shares_are_nested_and_of_whole_subjects() -> None:
    subjects = np.repeat([f"subject {n}" for n in range(20)], 3)
    shares = [set(share_of_subjects(subjects, share, 0)) for share in (0.1, 0.35, 0.5, 1.0)]
    assert [len(share) for share in shares] == [6, 21, 30, 60]
    assert all(a < b for a, b in pairwise(shares))
    assert all(len(set(subjects[list(share)])) * 3 == len(share) for share in shares)


def test_strangers_are_paired_among_those_who_have_several_images() -> None:
    subjects = np.array([f"several {n // 3}" for n in range(60)] + [f"one {n}" for n in range(30)])
    order = np.random.default_rng(1).permutation(len(subjects))
    dealt = shuffle_among_subjects(subjects[order], 0)
    assert sorted(dealt) == sorted(subjects)
    alone = np.char.startswith(subjects[order], "one")
    assert (dealt[alone] == subjects[order][alone]).all()
    # One in twenty keeps its name by chance.
    assert (dealt[~alone] == subjects[order][~alone]).mean() < 0.2


@pytest.mark.parametrize("batch_size", [12, 24, 64])
def test_a_batch_that_does_not_divide_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    monkeypatch.setattr("medvq.training.pretraining.world_size", lambda: 2)
    # There are 20 training images, so none fills 24 or 64.
    message = r"a batch of (12|20) images cannot be shared by NPROC=2 .* a multiple of 16 that"
    with pytest.raises(UserError, match=message):
        train(tmp_path, batch_size=batch_size)


def test_moving_averages_are_of_the_length_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def decay(steps: int, most: float) -> float:
        asked.append((steps, most))
        return 0.0  # what is counted is then the last batch alone

    monkeypatch.setattr("medvq.training.pretraining.decay_over", decay)
    state = train(tmp_path).checkpoint["objective"]
    assert asked == [(4 * 2, 0.99)]  # epochs of twenty images in batches of eight
    [counts] = [tensor for name, tensor in state.items() if name.endswith(".counts")]
    places = 8 * 4 * 4  # of codes in a batch
    # Codes that have just restarted count for a fifth of an even share each.
    assert places <= counts.sum() <= 1.2 * places
