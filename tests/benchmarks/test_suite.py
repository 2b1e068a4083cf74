"""The suite: metrics, leads, their mean, and configurations that load."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from medvq.config_file import config_file, load_config
from medvq.evaluation.intervals import Resampled
from medvq.stages.stage import RunOptions
from medvq.summaries import Validation
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

from benchmarks.study import Study
from benchmarks.suite.arms import ARMS, DATA_SETS, ProbeArm
from benchmarks.suite.cells import HEADLINES, Cell, Row, mean_lead, mean_of_parts, score
from benchmarks.suite.page import show_validation

Floats = NDArray[np.float64]


def normal(size: tuple[int, ...], seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=size)


def cell_of(dataset: str, lead: float, noise: float) -> Cell:
    """A cell in which MedVQ leads by ``lead``, less certainly the larger ``noise`` is."""
    scores = {
        "medvq": Resampled(np.array([[0.8 + lead]]), 0.8 + lead + noise * normal((500,))),
        "hog": Resampled(np.array([[0.8]]), np.full(500, 0.8)),
    }
    rows = [Row(name, 1, None, one) for name, one in scores.items()]
    return Cell(dataset, 0.1, 3, "auroc", rows)


def test_each_data_set_counts_once_and_narrows_the_mean() -> None:
    alone = mean_lead([cell_of("a", 0.1, 0.02)])
    both = mean_lead([cell_of("a", 0.1, 0.02), cell_of("a", 0.3, 0.02), cell_of("b", 0.0, 0.02)])
    assert alone is not None
    assert both is not None
    assert (alone.mean, both.mean) == pytest.approx((0.1, 0.1))
    widths = [high - low for low, high in (alone.ci95, both.ci95)]
    assert widths[1] == pytest.approx(widths[0] / np.sqrt(2), rel=1e-6)
    assert mean_lead([Cell("a", 0.1, 3, "auroc", cell_of("a", 0.1, 0.02).rows[:1])]) is None


def test_validation_scores_alone_are_shown_and_each_data_set_counts_once() -> None:
    cells = [cell_of("a", 0.1, 0.02), cell_of("a", 0.1, 0.02), cell_of("b", 0.1, 0.02)]
    for cell, reached in zip(cells, (0.5, 0.7, 0.8), strict=True):
        validation = Validation(reached, None, reached)
        cell.rows[:] = [replace(cell.rows[0], validation=validation), cell.rows[1]]
    *_, last = show_validation(cells).splitlines()
    assert last.split() == ["mean", "over", "data", "sets", "0.700"]
    assert "hog" not in show_validation(cells)


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
    truth, config = np.arange(30) % 2, load_config(config_file("phantom"))
    keys = pd.DataFrame({"subject_id": subjects, "label": truth})

    def row(name: str, noise: float) -> Row:
        table = keys.assign(probability=expit(truth + noise * normal((30,))))
        return Row(name, 1, None, score([[table]], "auroc", config))

    cell = Cell("some", 0.1, 3, "auroc", [row("medvq", 0.5), row("hog", 2), row("raw_pixels", 1)])
    assert cell.best_baseline == cell.rows[2]
    assert cell.lead is not None
    lead = cell.rows[0].mean - cell.rows[2].mean
    assert cell.lead.cells.mean() == pytest.approx(lead)
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


def test_folds_count_alike_and_their_chance_is_independent() -> None:
    parts = [cell_of("a", lead, 0.02) for lead in (0.1, 0.3)]
    parts[1].rows[0] = replace(
        parts[1].rows[0],
        score=Resampled(np.array([[1.1]]), 1.1 + 0.02 * normal((500,), 1)),
        validation=Validation(0.8, None, 0.8),
    )
    mean = mean_of_parts(parts)
    assert mean.rows[0].mean == pytest.approx(1.0)
    assert mean.rows[0].validation == Validation(0.8, None, 0.8)
    assert mean.lead is not None
    # Two folds halve the variance.
    assert mean.lead.resampled.std() == pytest.approx(0.02 / np.sqrt(2), rel=0.1)
    assert mean_of_parts(parts[:1]) is parts[0]
    with pytest.raises(AssertionError, match="other rows"):
        mean_of_parts([parts[0], replace(parts[1], rows=parts[1].rows[::-1])])


def test_test_subjects_of_each_part_are_resampled_independently() -> None:
    table = pd.DataFrame(
        {"subject_id": [f"s{n}" for n in range(40)], "label": np.arange(40) % 2}
    ).assign(probability=lambda t: expit(t["label"] + normal((40,))))
    config = load_config(config_file("phantom"))
    first, again, other = (score([[table]], "auroc", config, part) for part in (0, 0, 1))
    np.testing.assert_array_equal(first.resampled, again.resampled)
    assert abs(np.corrcoef(first.resampled, other.resampled)[0, 1]) < 0.1
    assert first.cells == other.cells


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_cell_is_a_configuration(name: str) -> None:
    data_set = DATA_SETS[name]
    for arm in ARMS.values():
        if isinstance(arm, ProbeArm) and arm.suits(load_config(config_file(data_set.config))):
            for part in data_set.parts:
                settings = (*data_set.settings, *part, *arm.settings)
                load_config(config_file(data_set.config), settings)
