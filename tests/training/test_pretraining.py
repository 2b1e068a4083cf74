"""Which images pretraining takes: whole subjects, nested shares, and shuffled subjects."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.pretraining import TINY, train
from medvq.errors import Notice, UserError
from medvq.training.loop import Run
from medvq.training.pretraining import (
    Pretraining,
    PretrainingData,
    share_of_subjects,
    shuffle_among_subjects,
)
from medvq.training.threads import TrainingThreads


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


@pytest.mark.parametrize(
    ("shape", "view_size", "expected"),
    [
        ((8, 16, 16), None, False),  # latents of 2 x 4 x 4
        ((16, 16, 16), 8, False),
        ((16, 16, 16), None, True),
        ((8, 8), None, True),
    ],
)
def test_thin_volumes_are_trained_in_float32_on_a_processor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    view_size: int | None,
    expected: bool,
) -> None:
    monkeypatch.setattr("medvq.training.loop.computes_in_bfloat16", lambda _: True)
    channels = (1,) if len(shape) == 3 else ()
    images = np.random.default_rng(0).integers(0, 256, (12, *channels, *shape), np.uint8)
    rows, names = np.arange(8), np.array([str(n) for n in range(12)])
    data = PretrainingData(images, names, rows, np.arange(8, 12), names[:8], images[:0], None, rows)
    config = TINY.model_copy(update={"view_size": view_size})
    cpu = torch.device("cpu")
    run = Run(tmp_path, 0, cpu, lambda *_: None, TrainingThreads(cpu))
    assert Pretraining(data, config, run).autocast is expected
    forced = config.model_copy(update={"amp": "bfloat16"})
    with nullcontext() if expected else pytest.warns(Notice, match="trained in float32 on"):
        assert Pretraining(data, forced, run).autocast is expected
