"""Run the studies that a data set allows; write their page.

What was chosen (the scores of anomalies and of the gate,
epochs, sizes) was chosen on validation images; the test split is read here, once.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from medvq.config_file import config_file, load_config
from medvq.datasets.manifest import read_manifest
from medvq.errors import UserError
from medvq.flow import Options, run
from medvq.images.preparation import Preparation
from medvq.method.alignment import Alignment
from medvq.method.vqvae import VQVAE
from medvq.prior.code_prior import CodePrior
from medvq.prior.codes import CodeMaps
from medvq.prior.outliers import CodeScores, FeatureDistance, score_images
from medvq.prior.restoration import limits, restoration
from medvq.prior.typicality import TypicalityCheck, surprise
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.command_line import provenance, run_study
from benchmarks.prior import samples
from benchmarks.prior.anomaly_maps import draw_maps
from benchmarks.prior.lesions import LESIONS, found_lesions
from benchmarks.prior.study import Row, Study

DOCS = Path(__file__).parents[2] / "docs"
PIXELCNN = (
    "prior.model=pixelcnn",
    "prior.channels=64",
    "prior.depth=5",
    "prior.dropout=0.2",
    "prior.learning_rate=0.002",
    "prior.epochs=5",
)
NORMAL = "NORMAL"
_OTHERS = 300
# Of the surprise at a place, the share of normal validation images beyond it: chosen on all.
_IMPROBABLE = 0.005
_ABOUT = samples.ABOUT | {
    "Gate": "No lateral view is among the data at hand, so none was shown to the gate.",
    "Lesions": LESIONS,
}


def main() -> None:
    """Run the study and write its page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config", default="kermany")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--data-mirror")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args()
    options = Options(parsed.data_root, parsed.data_mirror, parsed.artifacts, parsed.device)
    overrides = tuple(parsed.set)
    study = Study(
        load_config(config_file(parsed.config), overrides), overrides, parsed.config, options
    )
    groups = evaluate(study)
    page = _page(study, groups)
    (DOCS / f"PRIOR-{study.config.name}.md").write_text(page, encoding="utf-8")
    print(page)
    if parsed.json:
        rows = [row.as_dict() for rows in groups.values() for row in rows]
        print(json.dumps({"rows": rows}, allow_nan=False))


def evaluate(study: Study) -> dict[str, list[Row]]:
    """All figures that the data set allows, by what they are about."""
    trained = study.priors()
    trainings = [trained]
    if study.config.prior.model != "pixelcnn":
        trainings.append(study.priors(*PIXELCNN))
    maps, priors = study.maps, trained[0]
    groups = {"Likelihood": samples.likelihood(study, *trainings)}
    if len(maps.classes) > 1:
        groups |= samples.Samples(study, priors).groups()
    if NORMAL in maps.classes:
        groups["Anomalies"] = _anomaly(study, maps, study.model)
    if study.config.ingest.alignment.enabled:
        groups["Gate"] = _gate(study, maps, study.model, priors[0])
    if len(study.config.ingest.image_shape) == 3:
        groups["Lesions"] = _lesions(study, maps, study.model, priors[0])
    return groups


def _anomaly(study: Study, maps: CodeMaps, model: VQVAE) -> list[Row]:
    """Normal against all others. The ratio was chosen on validation images, plain and swapped."""
    grid = study.config.extract.grid
    images = np.load(study.ingest / "images.npy", mmap_mode="r")
    normal, _ = study.prior(f"prior.only_class={NORMAL}", "prior.epochs=12", "prior.dropout=0.2")
    unlabelled, _ = study.prior("prior.withheld_labels=1.0")
    reference = score_images(model, normal, images[maps.rows("train", NORMAL)], grid)
    distance = FeatureDistance(reference.features)
    beyond = limits(surprise(normal, maps.codes[maps.rows("validation", NORMAL)]), _IMPROBABLE)
    rows = []
    for split in ("validation", "test"):
        chosen = maps.rows(split)
        ill = maps.labels.numpy()[chosen] != maps.label_of(NORMAL)
        seen = score_images(model, normal, images[chosen], grid)
        background = score_images(model, unlabelled, images[chosen], grid)
        scores = {
            "surprise less that of a prior of all images, unlabelled": _total(seen)
            - _total(background),
            "surprise": _total(seen),
            "reconstruction error": seen.reconstruction,
            "Mahalanobis distance": distance.mahalanobis(seen.features),
            "nearest neighbours": distance.to_neighbours(seen.features),
        }
        # Of several levels, the images would need finer codes that go with the restored ones.
        if len(model.quantizers) == 1:
            restored = restoration(model, normal, seen.codes, seen.surprise > beyond)
            scores["restoration"] = restored.difference.mean((1, 2)).numpy()
            if split == "test":
                file = study.options.artifacts / study.config.name / "anomaly_maps.png"
                draw_maps(images[chosen], ill, seen.surprise, restored, file)
        found = {name: float(roc_auc_score(ill, score)) for name, score in scores.items()}
        for number, (name, value) in enumerate(found.items()):
            must = 0.80 if number == 0 and split == "test" else None
            rows.append(Row(f"anomaly by {name}: AUROC, {split}", value, must))
        if split == "test":
            ours, *_ = found.values()
            gain = ours - found["reconstruction error"]
            rows.append(Row("anomaly: above reconstruction error", gain, 0.05))
    return rows


def _lesions(study: Study, maps: CodeMaps, model: VQVAE, prior: CodePrior) -> list[Row]:
    images = np.load(study.ingest / "images.npy", mmap_mode="r")
    reference = surprise(prior, maps.codes[maps.rows("validation")])
    rows = []
    for split in ("validation", "test"):
        volumes = images[maps.rows(split)]
        found = found_lesions(model, prior, volumes, reference, study.config.seed)
        rows += [Row(f"lesions: {name}, AUROC, {split}", value) for name, value in found.items()]
    return rows


def _total(seen: CodeScores) -> NDArray[np.float64]:
    return np.asarray(seen.surprise.reshape(len(seen.codes), -1).mean(1))


def _gate(study: Study, maps: CodeMaps, model: VQVAE, prior: CodePrior) -> list[Row]:
    grid, folder, config = study.config.extract.grid, study.ingest, study.config.ingest
    originals = np.load(folder / "originals.npy", mmap_mode="r")
    gate = TypicalityCheck.calibrate(surprise(prior, maps.codes[maps.rows("validation")]))
    template = torch.from_numpy(np.load(folder / "template.npy"))[None, None]
    preparation = Preparation(config, Alignment(template, config.alignment))
    test = maps.rows("test")
    typical = gate.score(surprise(prior, maps.codes[test]))
    some = test[:: max(1, len(test) // _OTHERS)]
    others = {"inverted": 255 - originals[some], "upside down": originals[some][:, ::-1].copy()}
    for name, what in (("mnist", "mnist"), ("stl10", "stl10"), ("hippocampus", "slices of MR")):
        try:
            others[what] = _greys(name, study.options, config.read_shape)
        except UserError as error:
            print(f"left out: {error}")
    rows = [Row("gate: test images flagged", float((typical > gate.threshold).mean()), None, True)]
    for name, raw in others.items():
        score = gate.score(score_images(model, prior, preparation(raw).images, grid).surprise)
        truth = np.repeat([0, 1], [len(typical), len(score)])
        value = float(roc_auc_score(truth, np.concatenate([typical, score])))
        rows.append(Row(f"gate: {name}, AUROC", value, 0.99))
        rows.append(Row(f"gate: {name}, flagged", float((score > gate.threshold).mean())))
    return rows


def _greys(name: str, options: Options, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Test images of another data set, of volumes the middle slice, grey and of this size."""
    config = load_config(config_file(name))
    folder = Path(run("ingest", config, replace(options, force=False))["artifact"])
    split = read_manifest(folder / "manifest.csv")["split"]
    test = np.flatnonzero(split == "test")
    images = np.load(folder / "images.npy", mmap_mode="r")[test[:: max(1, len(test) // _OTHERS)]]
    if images.ndim == 5:
        images = images[:, :, images.shape[2] // 2]
    if images.ndim == 4:
        images = np.rint(images.mean(1)).astype(np.uint8)
    height, width = shape
    return np.stack([cv2.resize(image, (width, height)) for image in images])


def _page(study: Study, groups: dict[str, list[Row]]) -> str:
    lines = [
        f"# The model of the codes: {study.config.name}",
        "",
        f"Made by `make evaluate-prior DATASET={study.config.name}`. {provenance(study.config)}",
        "",
        "Scores, sizes and epochs were chosen on validation images. Likelihoods are without label.",
    ]
    for name, rows in groups.items():
        lines += ["", f"## {name}", ""]
        lines += [_ABOUT[name], ""] if name in _ABOUT else []
        lines += ["| figure | value | to reach |", "|---|---|---|"]
        for row in rows:
            sign = "at most" if row.lower_is_better else "at least"
            must = "" if row.must_reach is None else f"{sign} {row.must_reach:g}"
            lines.append(f"| {row.figure} | {row.value:.4g} | {must} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_study(main)
