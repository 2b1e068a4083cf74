"""How much features know of the number of images, and what the contrastive loss teaches of it."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from factories.flow import SMALLEST
from medvq.errors import UserError
from medvq.method.contrast import no_negatives, nt_xent
from medvq.stages.stage import RunOptions
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks import multiplicity
from benchmarks.multiplicity import (
    ARMS,
    COLUMNS,
    EQUAL,
    MASKED,
    SELF,
    compare,
    differences,
    few_label_auroc,
    figures,
    over_seeds,
    variance_explained,
)
from benchmarks.study import Study

RNG = np.random.default_rng(0)
GROUPS = RNG.random(400) < 0.3


def test_variance_explained_is_the_share_of_a_known_shift() -> None:
    rng = np.random.default_rng(1)
    several = rng.random(20_000) < 0.3
    shift = np.array([2.0, 0.0, 0.0])
    features = rng.normal(size=(20_000, 3)) + several[:, None] * shift
    between = 0.3 * 0.7 * 4  # the variance of the first column's shift; each column adds 1
    expected = between / (between + 3)
    assert variance_explained(features, several) == pytest.approx(expected, abs=0.01)
    assert variance_explained(10 + 3 * features, several) == pytest.approx(
        variance_explained(features, several)
    )


def test_chance_explains_no_variance_and_tells_no_group() -> None:
    rng = np.random.default_rng(2)
    pairs = [(rng.normal(size=(60, 8)), rng.permutation(60) < 20) for _ in range(200)]
    shares = [variance_explained(features, groups) for features, groups in pairs]
    assert np.mean(shares) == pytest.approx(0, abs=3 * np.std(shares) / 200**0.5)
    assert few_label_auroc(rng.normal(size=(400, 8)), GROUPS, 40, 50) == pytest.approx(
        0.5, abs=0.03
    )


def test_a_probe_of_few_labels_tells_a_shift() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(400, 4)) + 2 * GROUPS[:, None] * np.eye(4)[0]
    # No more than the one column that shifts, and not much less: forty labels find it.
    best = float(roc_auc_score(GROUPS, features[:, 0]))
    assert best - 0.1 < few_label_auroc(features, GROUPS, 40, 20) < best + 0.005
    assert few_label_auroc(-features, GROUPS, 40, 20) == pytest.approx(
        few_label_auroc(features, GROUPS, 40, 20)
    )


class Toy:
    """Subjects of one image or of four, who are told apart by their own first number alone.

    A marker shows who has several images, as the acquisition does in a clinic that images the ill
    again. Second views are of the image itself, or of any image of those who have several.
    """

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        several = torch.arange(320) < 160
        subject = torch.where(several, torch.arange(320) // 4, torch.arange(320))
        number = torch.where(several, 4, 1)
        self.subjects = torch.stack([subject, number], 1)
        self.several = several
        marker = several.float()[:, None] * 2 - 1
        self.images = torch.cat([marker, torch.randn((320, 6), generator=rng)], 1)
        self.rng = rng

    def second(self, strangers: bool) -> Tensor:
        order = torch.arange(320)
        if strangers:
            order[:160] = torch.randperm(160, generator=self.rng)
        noise = 0.5 * torch.randn(self.images.shape, generator=self.rng)
        return self.images[order] + noise

    def explained(self, *, strangers: bool, masked: bool) -> float:
        """Train a linear encoder, and return what multiplicity explains of its features."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = nn.Linear(7, 4, bias=False)
        optimiser = torch.optim.Adam(encoder.parameters(), 0.02)
        left_out = no_negatives(self.subjects) if masked else None
        for _ in range(100):
            first, second = (encoder(v)[None] for v in (self.images, self.second(strangers)))
            loss = nt_xent(first, second, 0.5, left_out=left_out)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            features = nn.functional.normalize(encoder(self.images), dim=-1)
        return variance_explained(features.double().numpy(), self.several.numpy())


def test_the_mask_hides_who_has_several_images() -> None:
    views = {
        name: Toy().explained(strangers=strangers, masked=masked)
        for name, strangers, masked in (
            ("self", False, False),
            ("self masked", False, True),
            ("strangers", True, False),
            ("strangers masked", True, True),
        )
    }
    assert views["strangers"] > 1.5 * views["self"], views
    assert views["strangers masked"] <= views["self"], views
    assert views["self masked"] <= views["self"], views


def table_of(gains: dict[str, float]) -> pd.DataFrame:
    """Runs of two seeds, in which each arm is better than self-views by its gain."""
    columns = (*COLUMNS.aurocs, *COLUMNS.multiplicity)
    return pd.DataFrame(
        {"second view": arm, "seed": seed}
        | dict.fromkeys(columns, 0.9 + seed / 100 + gains.get(arm, 0) * (1 + seed))
        for seed in range(2)
        for arm in ARMS
    )


def test_differences_are_paired_by_seed() -> None:
    runs = table_of({MASKED: 0.01}).sample(frac=1, random_state=0)
    np.testing.assert_allclose(differences(runs, MASKED, COLUMNS.aurocs[0]), [0.01, 0.02])
    compared = compare(runs, COLUMNS.aurocs).set_index("second view")
    assert compared.loc[SELF].tolist() == ["0.905"] * 3
    # The t quantile of one degree of freedom, 12.7, times .005.
    assert compared.loc[MASKED].tolist() == ["0.920 (+0.015 [-0.049, +0.079])"] * 3
    told = {figure.figure: figure for figure in figures(runs)}
    first = told[f"strangers under the mask less self-views, {COLUMNS.aurocs[0]}"]
    assert first.value == pytest.approx(0.015)
    assert first.must_reach == EQUAL


def test_intervals_over_seeds_are_students() -> None:
    found = over_seeds(np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    half = 2.7764 * (0.025 / 5) ** 0.5
    assert found.mean == pytest.approx(0.3)
    assert found.ci95 == pytest.approx((0.3 - half, 0.3 + half), abs=1e-4)


def study_of(folder: Path, *settings: str) -> Study:
    options = RunOptions(folder / "data", None, folder / "artifacts", "cpu")
    overrides = (*SMALLEST, "extract.versions=0", "pretrain.epochs=1", *settings)
    return Study("multiplicity", "benchmark-multiplicity", "phantom", overrides, options, folder)


@pytest.mark.usefixtures("kept_workers")
def test_the_study_trains_every_kind_on_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(multiplicity, "SEEDS", 2)
    monkeypatch.setattr(multiplicity, "ARMS", {name: ARMS[name] for name in (SELF, MASKED)})
    monkeypatch.setattr(multiplicity, "FRACTIONS", (0.5, 0.8, 1.0))
    monkeypatch.setattr(multiplicity, "_LABELS", 4)
    study = study_of(tmp_path, "source.multiplicity=by_label")
    multiplicity.main(study, argparse.Namespace(only=None))
    page = (tmp_path / "multiplicity-tiny.md").read_text()
    headings = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert headings[0] == "AUROC on the test split"
    assert headings[-1] == "Every training"
    rows = [line.split(" | ") for line in page.split("Every training")[1].splitlines()[4:]]
    assert len(rows) == 4
    assert len({tuple(row[2:]) for row in rows}) == len(rows), "two trainings are one"
    ingests = list((tmp_path / "artifacts/tiny/ingest").glob("[0-9a-f]*"))
    pretrained = list((tmp_path / "artifacts/tiny/pretrain").glob("[0-9a-f]*"))
    assert (len(ingests), len(pretrained)) == (1, len(rows))


def test_too_few_subjects_with_several_images_are_one_line(
    flow_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"\d+ of \d+ training subjects of label 0 have several"):
        multiplicity.main(study_of(flow_folder), argparse.Namespace(only=None))
