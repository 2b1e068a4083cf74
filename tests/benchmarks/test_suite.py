"""The suite: three factors of chance, paired differences, and configurations that load."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from medvq.config_file import config_file, load_config
from medvq.stages.stage import RunOptions
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

from benchmarks.study import Study
from benchmarks.suite.arms import ARMS, DATA_SETS, ProbeArm
from benchmarks.suite.cells import HEADLINES, Cell, Row, Score, mean_interval, score

Floats = NDArray[np.float64]


def normal(size: tuple[int, ...], seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=size)


def scored(of_subject: float, of_training: float, of_subset: float, trainings: int = 4) -> Score:
    """A score whose chance is of three factors with these deviations."""
    shape = (2000, trainings, 5)
    resampled = 0.8 + of_subject * normal((2000, 1, 1)) + np.zeros(shape)
    resampled += of_training * normal((1, trainings, 1), 1) + of_subset * normal((1, 1, 5), 2)
    return Score(resampled.mean(0), resampled, seed=3)


def width(one: Score) -> float:
    low, high = one.interval().ci95
    return high - low


def test_an_interval_has_the_chance_of_all_three_factors() -> None:
    factors = [scored(0.02, 0, 0), scored(0, 0.02, 0), scored(0, 0, 0.02)]
    assert width(factors[0]) == pytest.approx(2 * 1.96 * 0.02, rel=0.1)
    # A mean over n resampled values varies by their deviation over the root of n.
    for one, averaged in zip(factors[1:], (1, 0), strict=True):
        values = one.of_test.mean(axis=averaged)
        expected = 2 * 1.96 * values.std() / np.sqrt(len(values))
        assert width(one) == pytest.approx(expected, rel=0.1)
    together = width(scored(0.02, 0.02, 0.02))
    assert together == pytest.approx(np.sqrt(sum(width(one) ** 2 for one in factors)), rel=0.1)


def test_a_difference_is_paired_and_a_row_of_one_training_is_compared_with_each() -> None:
    trained, fixed = scored(0.05, 0.01, 0.03), scored(0.05, 0, 0.03, trainings=1)
    difference = trained - fixed
    assert difference.of_test.shape == trained.of_test.shape
    assert width(difference) == pytest.approx(width(scored(0, 0.01, 0)), rel=0.05)
    assert (trained - trained).interval().ci95 == (0.0, 0.0)


def test_the_mean_over_cells_is_narrower_where_data_sets_are_independent() -> None:
    one = scored(0.05, 0, 0)
    other = Score(one.of_test, one.resampled[::-1], one.seed)
    low, high = mean_interval([one, other]).ci95
    assert high - low == pytest.approx(width(one) / np.sqrt(2), rel=0.1)
    assert mean_interval([one, one]).ci95 == one.interval().ci95


@pytest.mark.parametrize(
    ("headline", "slow"),
    [
        ("auroc", lambda t: roc_auc_score(t["label"], t["probability"])),
        ("accuracy", lambda t: accuracy_score(t["label"], t["predicted"])),
        ("r2", lambda t: r2_score(t["target"], t["predicted"])),
    ],
)
def test_weights_count_images_as_often_as_they_were_drawn(headline: str, slow: Any) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "label": rng.integers(0, 2, 40),
            "probability": rng.random(40).round(1),
            "predicted": rng.integers(0, 2, 40),
            "target": rng.normal(size=40),
        }
    )
    drawn = rng.integers(0, 40, 40)
    weights = np.stack([np.ones(40), np.bincount(drawn, minlength=40)])
    expected = [slow(table), slow(table.iloc[drawn])]
    np.testing.assert_allclose(HEADLINES[headline](table, weights), expected)


def test_the_best_baseline_is_that_of_the_highest_mean_and_the_lead_is_over_it() -> None:
    subjects = [f"s{n}" for n in range(30)]
    truth = np.arange(30) % 2
    keys = pd.DataFrame({"subject_id": subjects, "label": truth})

    def row(name: str, noise: float) -> Row:
        table = keys.assign(probability=expit(truth + noise * normal((30,))))
        return Row(name, 1, None, score([[table]], "auroc", "some", 100))

    cell = Cell("some", 0.1, 3, "auroc", [row("medvq", 0.5), row("hog", 2), row("raw_pixels", 1)])
    assert cell.best_baseline == cell.rows[2]
    assert cell.lead is not None
    lead = cell.rows[0].score.mean - cell.rows[2].score.mean
    assert cell.lead.mean == pytest.approx(lead)
    assert lead > 0


def test_a_rival_encoder_may_choose_the_larger_c_of_baselines_and_medvq_may_not() -> None:
    study = Study("suite", "benchmark-suite", "phantom", (), RunOptions())
    usual = study.config().probe
    arms = {name: arm for name, arm in ARMS.items() if isinstance(arm, ProbeArm)}
    largest = {name: max(arm.config(study, 0.1).probe.regularisation) for name, arm in arms.items()}
    larger = max(usual.regularisation) * max(usual.larger_for_baselines)
    # The probe lets its own baselines search them.
    own = dict.fromkeys(("medvq", "baselines"), max(usual.regularisation))
    assert largest == dict.fromkeys(arms, larger) | own


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_cell_is_a_configuration(name: str) -> None:
    data_set = DATA_SETS[name]
    for arm in ARMS.values():
        if isinstance(arm, ProbeArm) and arm.suits(load_config(config_file(name))):
            load_config(config_file(name), (*data_set.settings, *arm.settings))
