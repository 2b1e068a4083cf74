"""What the model of the codes is good for: likelihood, samples, anomalies, a gate.

Writes ``docs/PRIOR-<data set>.md``. What was chosen (the scores of anomalies and of the gate,
epochs, sizes) was chosen on validation images; the test split is read here, once.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.anomaly_maps import draw_maps
from benchmarks.command_line import provenance
from benchmarks.lesions import LESIONS, found_lesions
from pipeline.cli import config_file
from pipeline.config import Config, load_config
from pipeline.data.alignment import Alignment
from pipeline.data.manifest import read_manifest
from pipeline.data.transforms import Equalise, cut_out
from pipeline.errors import UserError
from pipeline.features.store import FEATURES, read_feature
from pipeline.flow import Options, run
from pipeline.models.code_prior import CodePrior
from pipeline.models.vqvae import VQVAE
from pipeline.prior.codes import CodeMaps, read_codes, simple_codings
from pipeline.prior.gate import Gate, surprise
from pipeline.prior.restoration import limits, restoration
from pipeline.prior.sample import decoded, draw, independent
from pipeline.prior.stage import PRIOR, load_prior
from pipeline.prior.typicality import FeatureDistance, Seen, look
from pipeline.stage import find
from pipeline.training.weights import FILE, load_model

DOCS = Path(__file__).parent.parent / "docs"
PIXELCNN = (
    "prior.model=pixelcnn",
    "prior.channels=64",
    "prior.depth=5",
    "prior.dropout=0.2",
    "prior.learning_rate=0.002",
    "prior.epochs=5",
)
NORMAL = "NORMAL"
_PER_CLASS = 256
_OTHERS = 300
# Of the surprise at a place, the share of normal validation images beyond it: chosen on all.
_IMPROBABLE = 0.005
_NOTES = {
    "gate": "No lateral view is among the data at hand, so none was shown to the gate.",
    "lesions": LESIONS,
}


@dataclass(frozen=True)
class Row:
    """One figure, and what it is to reach, where anything."""

    figure: str
    value: float
    must_reach: float | None = None
    lower_is_better: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As ``JSON=1`` prints it."""
        return {**vars(self), "value": round(self.value, 4)}


@dataclass(frozen=True)
class Study:
    """The configuration, and the artifacts that all figures are made of."""

    config: Config
    overrides: tuple[str, ...]
    name: str
    options: Options

    def prior(self, *overrides: str) -> tuple[CodePrior, dict[str, Any]]:
        """A trained prior and its stage's result."""
        config = load_config(config_file(self.name), (*self.overrides, *overrides))
        result = run("prior", config, self.options)
        return load_prior(Path(result["artifact"]) / PRIOR, self.maps.codebook), result

    @property
    def ingest(self) -> Path:
        """The folder of the cache."""
        return Path(run("ingest", self.config, self.options)["artifact"])

    @property
    def extract(self) -> Path:
        """The folder of the feature store."""
        return Path(run("extract", self.config, self.options)["artifact"])

    @property
    def maps(self) -> CodeMaps:
        """The codes of all images."""
        artifact = find(self.extract)
        assert artifact is not None
        return read_codes(artifact)

    @property
    def model(self) -> VQVAE:
        """The trained VQ-VAE."""
        return load_model(Path(run("pretrain", self.config, self.options)["artifact"]) / FILE)


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
    rows = evaluate(study)
    page = _page(study, rows)
    (DOCS / f"PRIOR-{study.config.name}.md").write_text(page, encoding="utf-8")
    print(page)
    if parsed.json:
        print(json.dumps({"rows": [row.as_dict() for row in rows]}, allow_nan=False))


def evaluate(study: Study) -> list[Row]:
    """All figures that the data set allows."""
    prior, trained = study.prior()
    maps, model = study.maps, study.model
    rows = _likelihood(maps, prior, trained, study.config.prior.model)
    if study.config.prior.model != "pixelcnn":
        rows += _likelihood(maps, *study.prior(*PIXELCNN), "pixelcnn")
    if maps.classes:
        rows += _samples(study, maps, model, prior)
    if NORMAL in maps.classes:
        rows += _anomaly(study, maps, model)
    if study.config.ingest.alignment.enabled:
        rows += _gate(study, maps, model, prior)
    if len(study.config.ingest.image_shape) == 3:
        rows += _lesions(study, maps, model, prior)
    return rows


def _likelihood(maps: CodeMaps, prior: CodePrior, trained: dict[str, Any], name: str) -> list[Row]:
    train, validation, test = (
        maps.codes[maps.rows(split)].flatten(1).numpy() for split in ("train", "validation", "test")
    )
    simple = trained["val_bits_of_simple_codings"]
    found = trained["val_bits_per_code"]
    rows = [
        Row(f"{name}: bits per code, validation", found, None, True),
        Row(f"{name}: share of global frequency", found / simple["global_frequency"], 0.75, True),
        Row(
            f"{name}: share of position frequency", found / simple["position_frequency"], 0.92, True
        ),
        Row(f"{name}: bits per code, test", _bits(prior, maps, "test"), None, True),
        Row(f"{name}: minutes of training", trained["seconds"] / 60, 40, True),
    ]
    if name == "pixelcnn":
        return rows
    codings = simple_codings(train, validation, test, maps.size)
    rows += [Row(f"{k.replace('_', ' ')}: bits, test", v, None, True) for k, v in codings.items()]
    return rows


@torch.inference_mode()
def _bits(prior: CodePrior, maps: CodeMaps, split: str) -> float:
    parts = maps.codes[maps.rows(split)].split(256)
    nats = torch.cat([-prior.log_likelihood(part).flatten(1).mean(1) for part in parts])
    return float(nats.mean() / np.log(2))


def _probe() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=300))


def _samples(study: Study, maps: CodeMaps, model: VQVAE, prior: CodePrior) -> list[Row]:
    grid, seed = study.config.extract.grid, study.config.seed
    embedding = read_feature(study.extract / FEATURES, "embedding")
    sampling = study.config.sample.model_copy(update={"number": _PER_CLASS})
    wanted = range(len(maps.classes))
    codes = torch.cat([draw(prior, sampling, seed + label, label) for label in wanted])
    labels = np.repeat(list(wanted), _PER_CLASS)
    made = look(model, prior, decoded(model, codes), grid).features
    train, test = maps.rows("train"), maps.rows("test")
    truth = maps.labels.numpy()
    from_real = _probe().fit(embedding[train], truth[train])
    from_samples = _probe().fit(made, labels)
    rows = []
    if len(wanted) == 2:
        real = from_real.predict_proba(made)[:, 1]
        rows.append(Row("samples: AUROC between classes", roc_auc_score(labels, real), 0.95))
        other = from_samples.predict_proba(embedding[test])[:, 1]
        rows.append(Row("probe of samples alone: AUROC on test", roc_auc_score(truth[test], other)))
    else:
        rows.append(
            Row("samples: recognised", accuracy_score(labels, from_real.predict(made)), 0.95)
        )
        seen = accuracy_score(truth[test], from_samples.predict(embedding[test]))
        rows.append(Row("probe of samples alone: accuracy on test", seen))
    return rows + _resemblance(maps, codes, model, prior, grid, seed)


def _resemblance(
    maps: CodeMaps, codes: torch.Tensor, model: VQVAE, prior: CodePrior, grid: int, seed: int
) -> list[Row]:
    train, test = maps.codes[maps.rows("train")], maps.codes[maps.rows("test")]
    rng = np.random.default_rng(seed)
    shown = torch.from_numpy(rng.choice(len(test), min(len(test), len(codes)), replace=False))
    loose = independent(train, len(shown), rng)
    # Of one mixture of classes, and all through the decoder, whose blur would tell them apart.
    anyhow = codes[torch.from_numpy(rng.permutation(len(codes))[: len(shown)])]
    rows = [
        Row("different codes to nearest training image: samples", _nearest(codes, train)),
        Row("the same: test images", _nearest(test[shown], train)),
    ]
    real = look(model, prior, decoded(model, test[shown]), grid).features
    for name, given in (("samples", anyhow), ("independent codes", loose)):
        made = look(model, prior, decoded(model, given), grid).features
        truth = np.repeat([0, 1], [len(real), len(made)])
        told = cross_val_predict(
            _probe(), np.concatenate([real, made]), truth, cv=5, method="predict_proba"
        )[:, 1]
        rows.append(
            Row(f"{name} told from test images: AUROC", roc_auc_score(truth, told), None, True)
        )
    return rows


def _nearest(codes: torch.Tensor, train: torch.Tensor) -> float:
    """Median over ``codes`` of the share of codes that differ from the nearest of ``train``."""
    flat, known = codes.flatten(1), train.flatten(1)
    least = [
        float((known != one).double().mean(1).min()) for one in flat[:: max(1, len(flat) // 256)]
    ]
    return float(np.median(least))


def _anomaly(study: Study, maps: CodeMaps, model: VQVAE) -> list[Row]:
    """Normal against all others. The ratio was chosen on validation images, plain and swapped."""
    grid = study.config.extract.grid
    images = np.load(study.ingest / "images.npy", mmap_mode="r")
    normal, _ = study.prior(f"prior.only_class={NORMAL}", "prior.epochs=12", "prior.dropout=0.2")
    unlabelled, _ = study.prior("prior.withheld_labels=1.0")
    reference = look(model, normal, images[maps.rows("train", NORMAL)], grid)
    distance = FeatureDistance(reference.features)
    beyond = limits(surprise(normal, maps.codes[maps.rows("validation", NORMAL)]), _IMPROBABLE)
    rows = []
    for split in ("validation", "test"):
        chosen = maps.rows(split)
        ill = maps.labels.numpy()[chosen] != maps.label_of(NORMAL)
        seen = look(model, normal, images[chosen], grid)
        background = look(model, unlabelled, images[chosen], grid)
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


def _total(seen: Seen) -> NDArray[np.float64]:
    return np.asarray(seen.surprise.reshape(len(seen.codes), -1).mean(1))


def _gate(study: Study, maps: CodeMaps, model: VQVAE, prior: CodePrior) -> list[Row]:
    grid, folder, config = study.config.extract.grid, study.ingest, study.config.ingest
    originals = np.load(folder / "originals.npy", mmap_mode="r")
    gate = Gate.calibrate(surprise(prior, maps.codes[maps.rows("validation")]))
    template = torch.from_numpy(np.load(folder / "template.npy"))[None, None]
    alignment = Alignment(template, config.alignment)

    def prepared(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        equalised = np.stack([Equalise(config.equalise)(image) for image in raw])
        batch = torch.from_numpy(equalised)[:, None]
        placed = alignment.place(batch).positions
        return cut_out(batch, placed, config.image_shape)[:, 0].numpy()

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
        score = gate.score(look(model, prior, prepared(raw), grid).surprise)
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


def _page(study: Study, rows: list[Row]) -> str:
    lines = [
        f"# The model of the codes: {study.config.name}",
        "",
        f"Made by `make evaluate-prior DATASET={study.config.name}`. {provenance(study.config)}",
        "",
        "Scores, sizes and epochs were chosen on validation images. Likelihoods are without label.",
        *(note for key, note in _NOTES.items() if any(r.figure.startswith(key) for r in rows)),
        "",
        "| figure | value | to reach |",
        "|---|---|---|",
    ]
    for row in rows:
        sign = "at most" if row.lower_is_better else "at least"
        must = "" if row.must_reach is None else f"{sign} {row.must_reach:g}"
        lines.append(f"| {row.figure} | {row.value:.4g} | {must} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
