"""Variants of a training: each is one the configuration knows, and gains are paired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from medvq.config import Config
from medvq.config_file import load_config
from sklearn.metrics import roc_auc_score

from benchmarks.ablation import WITHOUT
from benchmarks.learning_curve import SHARES, fewer
from benchmarks.pairing import aurocs, gain

KERMANY = Path("configs/kermany.yaml")


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(KERMANY, ("probe.bootstrap=200",))


def predictions(noise: float, seed: int) -> pd.DataFrame:
    """Of three draws on the same forty images of twenty subjects, in another order each."""
    rng = np.random.default_rng(seed)
    label = np.arange(40) % 2
    draws = []
    for draw in range(3):
        said = 1 / (1 + np.exp(-(2 * label - 1 + noise * rng.normal(size=40))))
        table = pd.DataFrame(
            {
                "image_id": [f"{n:02d}" for n in range(40)],
                "subject_id": [f"s{n // 2}" for n in range(40)],
                "label": label,
                "probability": said,
                "draw": draw,
            }
        )
        draws.append(table.sample(frac=1, random_state=draw))
    return pd.concat(draws)


def test_aurocs_are_scikit_learns(config: Config) -> None:
    table = predictions(2.0, 0)
    expected = [
        roc_auc_score(draw["label"], draw["probability"]) for _, draw in table.groupby("draw")
    ]
    np.testing.assert_allclose(aurocs(table, config)[0], expected)


def test_a_gain_is_that_of_the_same_draws_and_subjects(config: Config) -> None:
    better, worse = (aurocs(predictions(noise, 0), config) for noise in (0.5, 3.0))
    nothing = gain(better, better, config)
    assert nothing["mean"] == 0
    assert nothing["ci95"] == [0, 0]
    up, down = gain(better, worse, config), gain(worse, better, config)
    assert up["mean"] == pytest.approx(np.mean(better[0] - worse[0]))
    assert up["mean"] == pytest.approx(-down["mean"])
    np.testing.assert_allclose(up["ci95"], [-x for x in down["ci95"]][::-1])
    assert 0 < up["ci95"][0] < up["mean"] < up["ci95"][1]


@pytest.mark.parametrize("setting", WITHOUT.values())
def test_what_is_taken_out_is_one_value_of_the_configuration(config: Config, setting: str) -> None:
    other = load_config(KERMANY, ("probe.bootstrap=200", setting))
    key, value = setting.split("=")
    section, name = key.split(".")[0], key.split(".")[1:]
    changed = getattr(other, section).model_dump()
    kept = getattr(config, section).model_dump()
    for part in name[:-1]:
        changed, kept = changed[part], kept[part]
    assert changed.pop(name[-1]) != kept.pop(name[-1])
    assert changed == kept
    assert value in ("0", "true", "false")


@pytest.mark.parametrize("share", SHARES)
def test_fewer_images_are_seen_as_often_together(config: Config, share: float) -> None:
    other = load_config(KERMANY, fewer(config, share)).pretrain
    assert other.epochs is not None
    assert config.pretrain.epochs is not None
    assert other.image_fraction == share
    assert other.epochs * share == pytest.approx(config.pretrain.epochs, rel=0.02)
    assert other.patience * share == pytest.approx(config.pretrain.patience, rel=0.02)
