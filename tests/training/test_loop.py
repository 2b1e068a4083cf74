"""How long a training is."""

import re
from pathlib import Path

import pytest
from factories.pretraining import train
from medvq.config import PretrainConfig
from medvq.training.loop import epoch_count, patience


@pytest.mark.parametrize(
    ("epochs", "batches", "expected_epochs", "expected_patience"),
    [(None, 40, 18, 10), (None, 10, 60, 30), (None, 7, 86, 43), (5, 1, 5, 10)],
)
def test_a_small_set_is_trained_on_for_more_epochs(
    epochs: int | None, batches: int, expected_epochs: int, expected_patience: int
) -> None:
    config = PretrainConfig(epochs=epochs)
    assert epoch_count(config, batches) == expected_epochs
    assert patience(config, batches) == expected_patience


def test_the_length_of_a_training_is_told_before_it_and_its_duration_soon_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, epochs=7)  # of two steps: 14 in all, of which eleven are timed
    err = capsys.readouterr().err
    length = "pretraining: at most 7 epochs of 2 steps; ends after 10 epochs without a better"
    assert re.search(
        f"{length}.*pretraining: about (1 minute|[2-9] minutes) for all epochs", err, re.DOTALL
    )
