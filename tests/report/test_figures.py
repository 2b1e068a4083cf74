"""Every figure is drawn from a small artifact made by hand, and shows something."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from medvq.datasets.manifest import COLUMNS
from medvq.prior.typicality import TypicalityCheck
from medvq.report import figures as module
from medvq.report.figures import (
    draw_evaluation,
    draw_extract,
    draw_ingest,
    draw_pretrain,
    draw_probe,
)
from medvq.storage.artifacts import RECORD, Artifact
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

NAMES = ("medvq", "raw_pixels", "hog", "untrained_encoder", "border_only", "histogram")
EXTRACT = Artifact(Path("none"), {"fingerprint": "of extract"})


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    folder = tmp_path / "figures"
    folder.mkdir()
    return folder


@pytest.fixture
def kept_open(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Figures by file name, to look at their lines after they were saved."""
    saved: dict[str, Any] = {}
    save = module._save

    def keep(figure: Any, file: Path) -> None:
        saved[file.name] = figure
        save(figure, file)

    monkeypatch.setattr(module, "_save", keep)
    return saved


def greys(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("L"))


def names_of(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_ingest_shows_images_and_means(
    tmp_path: Path, figures: Path, kept_open: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    splits = np.repeat(["train", "validation", "test"], [10, 4, 6])
    number = len(splits)
    labels = np.arange(number) % 2
    manifest = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=range(number)).assign(
        split=splits, label=labels, label_name=np.array(["ill", "normal"])[labels]
    )
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    images = rng.integers(0, 256, (number, 16, 16), np.uint8)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "originals.npy", rng.integers(0, 256, (number, 24, 24), np.uint8))
    np.save(tmp_path / "swapped_validation.npy", rng.integers(0, 256, (14, 16, 16), np.uint8))
    draw_ingest(tmp_path, {}, {}, figures)
    assert names_of(figures) == {"images.png", "class_means.png"}
    for file in figures.iterdir():
        assert len(np.unique(greys(file))) > 100
    means = kept_open["class_means.png"].axes
    assert [axis.get_title() for axis in means[:4]] == [
        "train, ill",
        "train, normal",
        "test, ill",
        "test, normal",
    ]
    shown = means[4 + 3].images[0].get_array()
    np.testing.assert_allclose(shown, images[(splits == "test") & (labels == 1)].mean(0))


def test_images_without_labels_have_no_class_means(tmp_path: Path, figures: Path) -> None:
    manifest = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=range(9)).assign(split="train")
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    for name in ("images.npy", "originals.npy", "swapped_validation.npy"):
        np.save(tmp_path / name, np.full((9, 16, 16), 90, np.uint8))
    draw_ingest(tmp_path, {}, {}, figures)
    assert names_of(figures) == {"images.png"}


def test_pretrain_shows_curves_reconstructions_and_codes(
    tmp_path: Path, figures: Path, kept_open: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    columns = (
        "reconstruction",
        "val_mse",
        "contrast",
        "val_contrast",
        "val_psnr_db",
        "codes_used",
        "perplexity",
        "codes_used_1",
        "perplexity_1",
    )
    history = pd.DataFrame({"epoch": range(1, 6)} | {name: rng.random(5) for name in columns})
    history.to_csv(tmp_path / "history.csv", index=False)
    original, made = rng.integers(0, 256, (2, 8, 16, 16), np.uint8)
    np.savez(tmp_path / "reconstructions.npz", original=original, reconstruction=made)
    np.save(tmp_path / "codebook_use.npy", np.array([1, 6, 0, 3]))
    np.save(tmp_path / "codebook_use_1.npy", np.array([1, 1]))
    books = [{"used": 3, "size": 4, "perplexity": 2.4}, {"used": 2, "size": 2, "perplexity": 2.0}]
    summary = {"codebook": books}
    draw_pretrain(tmp_path, {}, summary, figures)
    assert names_of(figures) == {"curves.png", "reconstructions.png", "codebook_use.png"}
    assert len(np.unique(greys(figures / "reconstructions.png"))) > 100
    for name in ("curves.png", "codebook_use.png"):
        assert len(np.unique(greys(figures / name))) > 20
    errors = [axis.images[0].get_array() for axis in kept_open["reconstructions.png"].axes[16:]]
    np.testing.assert_array_equal(errors, np.abs(original.astype(float) - made))
    validation = kept_open["curves.png"].axes[0].lines[1]
    np.testing.assert_allclose(validation.get_ydata(), history["val_mse"])
    for level, shares in enumerate(([60, 30, 10, 0], [50, 50])):
        bars = [bar.get_height() for bar in kept_open["codebook_use.png"].axes[level].patches]
        assert bars == pytest.approx(shares)
    used = [line.get_ydata().tolist() for line in kept_open["curves.png"].axes[3].lines]
    names = ("codes_used", "perplexity", "codes_used_1", "perplexity_1")
    assert used == [history[name].tolist() for name in names]


def probed(fraction: float, auroc: float = 0.8) -> dict[str, Any]:
    rows = [
        {"features": name, "auroc": {"mean": auroc - n / 50, "std": 0.01, "ci95": [0.4, 0.95]}}
        for n, name in enumerate(NAMES)
    ]
    return {"label_fraction": fraction, "repeats": 2, "rows": rows}


@pytest.fixture
def predictions(tmp_path: Path) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = np.tile(np.arange(60) % 2, len(NAMES) * 2)
    table = pd.DataFrame(
        {
            "features": np.repeat(NAMES, 120),
            "draw": np.tile(np.repeat([0, 1], 60), len(NAMES)),
            "image_id": np.tile(np.arange(60), len(NAMES) * 2),
            "label": label,
            "threshold": 0.5,
            "probability": np.clip(0.3 * label + 0.7 * rng.random(len(label)), 0, 1),
        }
    )
    folder = tmp_path / "mine"
    folder.mkdir()
    table.to_parquet(folder / "predictions.parquet")
    return table


def test_probe_shows_roc_calibration_and_label_efficiency(
    tmp_path: Path, figures: Path, predictions: pd.DataFrame, kept_open: dict[str, Any]
) -> None:
    for name, extract, fraction in (
        ("earlier", "of extract", 0.01),
        ("foreign", "of another", 0.5),
    ):
        (tmp_path / name).mkdir()
        record = {"inputs": {"extract": extract}, "summary": probed(fraction, 0.7)}
        (tmp_path / name / RECORD).write_text(json.dumps(record))
    draw_probe(tmp_path / "mine", {"extract": EXTRACT}, probed(0.05), figures)
    assert names_of(figures) == {
        "roc_and_calibration.png",
        "decisions_and_abstention.png",
        "label_efficiency.png",
    }
    for file in figures.iterdir():
        assert len(np.unique(greys(file))) > 30
    left, right = kept_open["roc_and_calibration.png"].axes
    assert len(left.lines) == len(NAMES) + 1
    for name, line in zip(("medvq", "raw_pixels", "hog"), left.lines, strict=False):
        own = predictions[predictions["features"] == name]
        aurocs = [roc_auc_score(d["label"], d["probability"]) for _, d in own.groupby("draw")]
        under = np.trapezoid(line.get_ydata(), line.get_xdata())
        assert under == pytest.approx(np.mean(aurocs), abs=0.02)
    assert left.lines[0].get_label() == "MedVQ 0.800 [0.400, 0.950]"
    # Three feature sets, MedVQ corrected, and the diagonal.
    assert len(right.lines) == 5
    (axis,) = kept_open["label_efficiency.png"].axes
    means = axis.containers[0].lines[0]
    assert means.get_xdata().tolist() == [1, 5]
    assert means.get_ydata().tolist() == [0.7, 0.8]


def test_decisions_and_abstention_are_means_over_draws(
    tmp_path: Path, figures: Path, predictions: pd.DataFrame, kept_open: dict[str, Any]
) -> None:
    draw_probe(tmp_path / "mine", {"extract": EXTRACT}, probed(0.05), figures)
    left, middle, right = kept_open["decisions_and_abstention.png"].axes
    labels = ["MedVQ", "raw pixels", "untrained encoder"]
    assert [line.get_label() for line in left.lines] == [*labels, "treat all", "treat none"]
    assert [line.get_label() for line in middle.lines] == labels
    own = predictions[predictions["features"] == "raw_pixels"]
    wrong = (own["probability"] >= 0.5) != (own["label"] == 1)
    assert middle.lines[1].get_ydata()[-1] == pytest.approx(100 * wrong.mean())
    each = wrong.groupby([own["draw"], own["label"]]).mean()
    assert right.lines[1].get_ydata()[-1] == pytest.approx(100 * each.mean())
    treated = own[own["probability"] >= 0.2]
    gain = (treated["label"] == 1).sum() - (treated["label"] == 0).sum() * 0.2 / 0.8
    assert left.lines[1].get_xdata()[19] == pytest.approx(20)
    assert left.lines[1].get_ydata()[19] == pytest.approx(100 * gain / len(own))


def test_figures_are_closed(tmp_path: Path, figures: Path, predictions: pd.DataFrame) -> None:
    before = plt.get_fignums()
    draw_probe(tmp_path / "mine", {"extract": EXTRACT}, probed(1.0), figures)
    assert plt.get_fignums() == before


def test_extract_draws_nothing(tmp_path: Path, figures: Path) -> None:
    draw_extract(tmp_path, {}, {}, figures)
    assert names_of(figures) == set()


@pytest.mark.parametrize("flagged", [0, 3])
def test_evaluation_shows_how_typical_the_images_are(
    tmp_path: Path, figures: Path, kept_open: dict[str, Any], flagged: int
) -> None:
    rng = np.random.default_rng(0)
    ingest, prior = tmp_path / "ingest", tmp_path / "prior"
    ingest.mkdir()
    prior.mkdir()
    names = [f"{number:016x}" for number in range(20)]
    manifest = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=range(20)).assign(image_id=names)
    manifest.to_csv(ingest / "manifest.csv", index=False)
    images = rng.integers(0, 256, (20, 16, 16), np.uint8)
    np.save(ingest / "images.npy", images)
    np.save(ingest / "originals.npy", rng.integers(0, 256, (20, 24, 24), np.uint8))
    TypicalityCheck(9.0, 100, tuple(np.linspace(4, 9.1, 100).tolist())).write(prior)
    surprise = np.linspace(5, 6, 20)
    surprise[[4, 2, 9][:flagged]] = [12, 11, 10][:flagged]
    told = pd.DataFrame({"image_id": names, "surprise": surprise, "untypical": surprise > 9})
    # Of images that the training has seen there is no row.
    told.drop(index=0).to_parquet(tmp_path / "predictions.parquet")
    inputs = {"ingest": Artifact(ingest, {}), "prior": Artifact(prior, {})}
    draw_evaluation(tmp_path, inputs, {"rows": []}, figures)
    (axis,) = kept_open["gate.png"].axes
    assert axis.get_title() == f"{flagged} of 19 images are flagged"
    assert "bits per code" in axis.get_xlabel()
    assert axis.lines[0].get_xdata() == [9.0, 9.0]
    heights = [bar.get_height() for bar in axis.patches[:40]]
    assert sum(heights) == pytest.approx(100)
    assert ("untypical.png" in names_of(figures)) == bool(flagged)
    if flagged:
        shown = kept_open["untypical.png"].axes
        assert [cell.get_title() for cell in shown[:3]] == [
            f"{names[4]}\n12.0 bits",
            f"{names[2]}\n11.0 bits",
            f"{names[9]}\n10.0 bits",
        ]
        prepared = [cell.images[0].get_array() for cell in shown[3:]]
        np.testing.assert_array_equal(prepared, images[[4, 2, 9]])
