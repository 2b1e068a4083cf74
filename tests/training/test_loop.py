"""How long a training is."""

import pytest
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
