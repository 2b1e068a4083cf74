"""Metrics on the same label subsets and subjects: values, and paired differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medvq.config import Config, PhantomSource, ProbeConfig
from sklearn.metrics import recall_score, roc_auc_score

from benchmarks.paired import judge, judge_trainings

CONFIG = Config(name="tiny", source=PhantomSource(kind="phantom"), probe=ProbeConfig(bootstrap=200))


def predictions(noise: float, seed: int = 0) -> list[pd.DataFrame]:
    """Return predictions of three label subsets, for forty images of twenty subjects."""
    rng, label = np.random.default_rng(seed), np.arange(40) % 2
    return [
        pd.DataFrame(
            {
                "image_id": [f"{n:02d}" for n in range(40)],
                "subject_id": [f"s{n // 2}" for n in range(40)],
                "label": label,
                "probability": 1 / (1 + np.exp(-(2 * label - 1 + noise * rng.normal(size=40)))),
                "threshold": 0.5,
            }
        )
        for _ in range(3)
    ]


@pytest.mark.parametrize("rows", [None, np.arange(40) < 25])
def test_metrics_are_scikit_learns(rows: np.ndarray | None) -> None:
    subsets = predictions(2.0)
    judged = judge(subsets, CONFIG, rows)
    chosen = [subset if rows is None else subset[rows] for subset in subsets]
    aurocs = [roc_auc_score(subset["label"], subset["probability"]) for subset in chosen]
    recalls = [recall_score(one["label"], one["probability"] >= 0.5) for one in chosen]
    assert judged.interval("auroc").mean == pytest.approx(np.mean(aurocs))
    assert judged.interval("auroc").std == pytest.approx(np.std(aurocs, ddof=1))
    assert judged.interval("sensitivity").mean == pytest.approx(np.mean(recalls))
    low, high = judged.interval("auroc").ci95
    assert low < np.mean(aurocs) < high


def test_a_difference_is_of_the_same_label_subsets_and_subjects() -> None:
    better, worse = (judge(predictions(noise), CONFIG) for noise in (0.5, 3.0))
    nothing = better.minus(better, "auroc")
    assert (nothing.mean, nothing.ci95) == (0, (0, 0))
    up, down = better.minus(worse, "auroc"), worse.minus(better, "auroc")
    gap = better.interval("auroc").mean - worse.interval("auroc").mean
    assert up.mean == pytest.approx(gap) == pytest.approx(-down.mean)
    np.testing.assert_allclose(up.ci95, [-x for x in down.ci95][::-1])
    assert up.ci95[0] < up.mean < up.ci95[1]
    assert up.mean > 0


def test_several_trainings_are_crossed_and_paired() -> None:
    trainings = [predictions(1.0, seed) for seed in range(3)]
    alone = [judge(one, CONFIG) for one in trainings]
    crossed = judge_trainings(trainings, CONFIG)
    means = [one.interval("auroc").mean for one in alone]
    assert crossed.interval("auroc").mean == pytest.approx(np.mean(means))
    assert crossed.metrics["auroc"].cells.shape == (3, 3)
    fixed = judge(predictions(3.0, 9), CONFIG)
    leads = [one.minus(fixed, "auroc").mean for one in alone]
    lead = crossed.minus(fixed, "auroc")
    assert lead.mean == pytest.approx(np.mean(leads))
    assert lead.ci95[0] < min(leads) < max(leads) < lead.ci95[1]
