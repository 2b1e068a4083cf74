"""What others would use: their loss and views, the envelope, and the study on a tiny set."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from factories.flow import SMALLEST
from medvq.summaries import Interval

from benchmarks.faults.tiny import NAME
from benchmarks.peers import __main__ as peers
from benchmarks.peers import networks, page
from benchmarks.peers.networks import nt_xent, random_view
from benchmarks.peers.page import Point, shortfall


def test_the_contrastive_loss_is_that_of_a_loop() -> None:
    first, second = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    vectors = [v / v.norm() for v in (*first, *second)]
    losses = []
    for number, vector in enumerate(vectors):
        partner = (number + 5) % 10
        terms = [math.exp(vector @ other / 0.2) for other in vectors]
        losses.append(-math.log(terms[partner] / (sum(terms) - terms[number])))
    expected = sum(losses) / len(losses)
    assert float(nt_xent(first, second, temperature=0.2)) == pytest.approx(expected, rel=1e-5)


def test_a_view_is_a_part_of_the_image_in_other_greys() -> None:
    ramp = torch.linspace(0.2, 0.5, 16).expand(64, 1, 16, 16)
    views = random_view(ramp, torch.Generator().manual_seed(0))
    assert 0 <= views.min() <= views.max() <= 1
    # Greys rise from left to right as before, by less than 1.4 times as much, and not at all
    # from top to bottom.
    steps = views.diff(dim=3)
    assert steps.min() >= -1e-6
    assert steps.max() <= 1.4 * 0.3 / 15 + 1e-6
    assert views.diff(dim=2).abs().max() < 1e-5
    assert views.mean((1, 2, 3)).std() > 0.05


def point(method: str, minutes: float, auroc: float) -> Point:
    return Point("set", method, minutes, {0.1: Interval(auroc, 0.0, (auroc, auroc))})


def test_the_shortfall_is_that_of_the_worst_minute_since_the_others_began() -> None:
    others = [point("hog", 2.5, 0.8), point("monai_vqvae", 30, 0.9), point("late", 61, 1.0)]
    early = [point("medvq_base", 1, 0.85), point("medvq_scratch", 50, 0.95)]
    assert shortfall([*others, *early], 0.1) == pytest.approx(0.05)  # from minute 30 to 49
    assert shortfall([*others[:1], *early], 0.1) == pytest.approx(-0.05)
    late = [point("medvq_base", 20, 0.95)]
    assert shortfall([*others, *late], 0.1) == pytest.approx(0.3)  # there is nothing at first
    assert shortfall(early, 0.1) is None


@pytest.mark.usefixtures("kept_workers")
def test_the_study_judges_all_methods_on_the_same_images(
    flow_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (flow_folder / "artifacts" / "phantom").symlink_to(NAME)  # its images are prepared
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for module in (peers, page):
        monkeypatch.setattr(module, "FRACTIONS", (0.5,))
    monkeypatch.setattr(page, "MINUTES", (10_000,))  # all have come to their end
    monkeypatch.setattr(networks, "SIDE", 32)
    places = ("--data-root", flow_folder / "data", "--artifacts", flow_folder / "artifacts")
    small = [s for s in SMALLEST if not s.startswith(("name=", "pretrain.epochs", "probe.label"))]
    options = [part for setting in small for part in ("--set", setting)]
    chosen = ("--only", "phantom", "--arms", "medvq_scratch,monai_vqvae,hog")
    more = ("--epochs", "1", "--device", "cpu", "--results", str(tmp_path), "--json")
    command = [*map(str, places), *chosen, *more, *options]
    assert peers.main(peers.parse(command)) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert (row["must_reach"], row["lower_is_better"]) == (0.005, True)
    text = (tmp_path / "peers-phantom.md").read_text()
    lines = [
        line for line in text.splitlines() if line.startswith(("| medvq_", "| monai", "| hog"))
    ]
    assert [line.split()[1] for line in lines] == ["medvq_scratch", "monai_vqvae", "hog"]
    plain = peers.Peers("phantom", peers.parse(command)).ingest()  # what others need
    assert not (plain.folder / "swapped_validation.npy").exists()
    assert lines[2].split()[3] == f"{plain.record.seconds / 60:.1f}"
    reached = [float(line.split()[5]) for line in lines]
    assert row["value"] == pytest.approx(max(reached[1:]) - reached[0], abs=1e-3)
    assert (
        "make benchmark-peers ONLY=phantom ARMS=medvq_scratch,monai_vqvae,hog EPOCHS=1 SET=" in text
    )
    assert (tmp_path / "peers-phantom.png").exists()
