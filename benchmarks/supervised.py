"""A ResNet-18 trained from scratch on the very labels that the probe is fitted on.

The same draws, aligned images, test images, metrics and bootstrap; the lead of MedVQ is paired over
draws and subjects. What the network is given: random versions and disturbances as pretraining's,
acquisition-swapped copies as often as pretraining's second views, and a part of the drawn subjects
held out for early stopping, which is judged as the probe's C is (three parts on images as they are,
one part on swapped ones), and for calibration. See :class:`Recipe`.

Writes ``docs/SUPERVISED-<data set>.md`` and ``docs/supervised-<data set>.png``. Every draw's
predictions are kept, so that an interrupted study goes on with the next.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from medvq.config import Config, PretrainConfig, TrainingConfig
from medvq.datasets.manifest import read_manifest
from medvq.device import choose_device, computes_in_bfloat16
from medvq.errors import UserError
from medvq.evaluation import metrics
from medvq.evaluation.label_subsets import repeated_draws
from medvq.evaluation.tasks import Binary
from medvq.flow import made_from, run
from medvq.method.augmentation import (
    apply_photometric,
    photometric_parameter_count,
    photometric_parameters,
    random_versions,
)
from medvq.method.probe import calibrate, grouped_folds, selection_score
from medvq.method.scaling import to_network, to_unit
from medvq.report.figures import draw_label_efficiency
from medvq.storage.artifacts import Artifact, find, fingerprint
from medvq.training.batches import epoch_seed
from medvq.training.loop import epoch_count, patience
from monai.networks.nets import resnet18
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.command_line import arguments, configuration, provenance, run_study
from benchmarks.label_efficiency import FRACTIONS
from benchmarks.tables import interval, table_row

DOCS = Path(__file__).parent.parent / "docs"
ROW = "resnet18_scratch"
SHOWN = ("medvq", "untrained_encoder", "raw_pixels")
METRICS = (
    "auroc",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "sensitivity_at_90_specificity",
    "brier",
    "ece",
)
_AT_ONCE = 256
_TASK = Binary()
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]


class Recipe(TrainingConfig):
    """How the network is trained: AdamW, a cosine after a warm-up, the best epoch kept.

    Epochs are at least 18 and as many as make 600 steps; training stops once half of them bring
    nothing better.
    """

    size: int = 64
    """Side that images are averaged down to, in pixels."""
    folds: int = 5
    """One of so many parts of the drawn subjects is held out."""
    batch_size: int = 32
    augment_strength: float = 0.6
    """Of the random views: that of the probe's versions, which validation prefers to the milder
    ones of pretraining."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 30


@dataclass(frozen=True)
class Labelled:
    """Images whose label a network may see.

    Attributes
    ----------
    images : bytes (N, S, S).
    copies : bytes (copies, N, S, S), acquisition-swapped, of the kind for training; may be none.
    swapped : bytes (N, S, S), swapped in the kind that no training sees; None where none are.
    truth, subjects : (N,).
    """

    images: Bytes
    copies: Bytes
    swapped: Bytes | None
    truth: NDArray[np.int64]
    subjects: NDArray[np.str_]


@dataclass(frozen=True)
class Classifier:
    """A trained network and what calibrates it.

    Attributes
    ----------
    network : images to scores of both classes.
    calibration : from the difference of the scores to a probability.
    threshold : the drawn prevalence, as the probe's.
    epochs : that were trained, and ``best``, the one that was kept.
    """

    network: nn.Module
    recipe: Recipe
    calibration: LogisticRegression
    threshold: float
    epochs: int
    best: int

    def predict(self, images: Bytes) -> Floats:
        """Probabilities of class 1 (N,) of images (N, S, S)."""
        scores = _scores(self.network, images, self.recipe)
        return np.asarray(self.calibration.predict_proba(scores[:, None])[:, 1])


def train(
    given: Labelled, recipe: Recipe, views: PretrainConfig, seed: int, device: str = "cpu"
) -> Classifier:
    """Train a ResNet-18 on a part of ``given``, stop and calibrate it by the rest.

    Parameters
    ----------
    views : how pretraining's views are made; the network is shown such.

    Raises
    ------
    UserError
        A class has too few subjects to hold any out.
    """
    fitted_on, held_out = grouped_folds(given.truth, given.subjects, recipe.folds)[0]
    torch.manual_seed(seed)
    network = resnet18(spatial_dims=2, n_input_channels=1, num_classes=2, conv1_t_stride=2)
    network = network.to(device, memory_format=torch.channels_last)
    size = min(recipe.batch_size, len(fitted_on))
    batches = len(fitted_on) // size
    mixed = computes_in_bfloat16(torch.device(device))
    epochs = epoch_count(recipe, batches)
    optimiser = torch.optim.AdamW(
        network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    warmup = min(recipe.warmup_steps, epochs * batches // 2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _rate(step, warmup, epochs * batches)
    )
    best, kept, at = -math.inf, network.state_dict(), 0
    for epoch in range(epochs):
        network.train()
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        order = torch.randperm(len(fitted_on), generator=generator).numpy()
        for number in range(batches):
            chosen = fitted_on[order[number * size : (number + 1) * size]]
            seen = _view(given, chosen, recipe, views, generator).to(device)
            truth = torch.from_numpy(given.truth[chosen]).to(device)
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(seen.device.type, torch.bfloat16, enabled=mixed):
                scores = network(seen)
            F.cross_entropy(scores.float(), truth).backward()
            optimiser.step()
            schedule.step()
        clean, swapped = _held_out(network, given, held_out, recipe)
        found = selection_score(_TASK, given.truth[held_out], clean, swapped)
        if found > best:
            best, kept, at = found, copy.deepcopy(network.state_dict()), epoch
        elif epoch - at >= patience(recipe, batches):
            break
    network.load_state_dict(kept)
    # A plain line to start with, which the task then calibrates as it does the probe's.
    calibration = LogisticRegression()
    calibration.classes_ = np.array([0, 1])
    calibration.coef_, calibration.intercept_ = np.ones((1, 1)), np.zeros(1)
    clean, swapped = _held_out(network, given, held_out, recipe)
    calibrate(_TASK, calibration, given.truth[held_out], clean, swapped)
    return Classifier(network, recipe, calibration, _TASK.threshold(given.truth), epoch + 1, at + 1)


def _rate(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def _held_out(
    network: nn.Module, given: Labelled, rows: NDArray[np.intp], recipe: Recipe
) -> tuple[Floats, Floats | None]:
    """Scores of held-out images, as they are and swapped."""
    clean = _scores(network, given.images[rows], recipe)
    return clean, None if given.swapped is None else _scores(network, given.swapped[rows], recipe)


def _view(
    given: Labelled,
    rows: NDArray[np.intp],
    recipe: Recipe,
    views: PretrainConfig,
    generator: torch.Generator,
) -> Tensor:
    """Random views of images, as pretraining's: (B, 1, size, size), normalised."""
    images = np.array(given.images[rows])
    unit = torch.rand((len(rows), 2), generator=generator).numpy()
    take = np.flatnonzero(unit[:, 1] < views.contrast.swapped_share)
    if len(given.copies) and len(take):
        images[take] = given.copies[(unit[take, 0] * len(given.copies)).astype(int), rows[take]]
    seen = _resized(images, recipe)
    seen = random_versions(seen, views.augment, recipe.augment_strength, generator)
    if views.photometric:
        number = photometric_parameter_count(2, views.augment.cut_outs)
        unit_of = torch.rand((len(seen), number), generator=generator)
        drawn = photometric_parameters(unit_of, views.augment, 1, seen.shape[2:])
        seen = apply_photometric(
            seen, drawn, torch.randn(seen.shape, generator=generator), views.augment
        )
    return to_network(seen)


def _resized(images: Bytes, recipe: Recipe) -> Tensor:
    return F.interpolate(to_unit(images), (recipe.size, recipe.size), mode="area")


@torch.inference_mode()
def _scores(network: nn.Module, images: Bytes, recipe: Recipe) -> Floats:
    """How far class 1 is above class 0, (N,), of images (N, S, S)."""
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for at in range(0, len(images), _AT_ONCE):
        seen = to_network(_resized(images[at : at + _AT_ONCE], recipe)).to(device)
        scores = network(seen).double()
        parts.append((scores[:, 1] - scores[:, 0]).cpu().numpy())
    return np.concatenate(parts)


@dataclass(frozen=True)
class Cache:
    """The images of an ingest artifact, read as they are needed, and who they are of."""

    folder: Path
    manifest: pd.DataFrame
    swaps: bool

    def rows(self, split: str) -> NDArray[np.intp]:
        """Labelled images of a split."""
        chosen = (self.manifest["split"] == split) & self.manifest["label"].notna()
        return np.flatnonzero(chosen)

    def images(self, rows: NDArray[np.intp]) -> Bytes:
        return np.asarray(np.load(self.folder / "images.npy", mmap_mode="r")[rows])

    def swapped(self, rows: NDArray[np.intp]) -> Bytes | None:
        """Of images that are no test images, their copies of the kind that no training sees."""
        if not self.swaps:
            return None
        kept = np.flatnonzero(self.manifest["split"] != "test")
        copies = np.load(self.folder / "swapped_validation.npy", mmap_mode="r")
        return np.asarray(copies[kept.searchsorted(rows)])

    def labelled(self, rows: NDArray[np.intp]) -> Labelled:
        """Training images with all that a network may see of them."""
        images, train = self.images(rows), np.flatnonzero(self.manifest["split"] == "train")
        copies = images[None][:0]
        if self.swaps:
            stored = np.load(self.folder / "swapped_training.npy", mmap_mode="r")
            copies = np.asarray(stored[:, train.searchsorted(rows)])
        truth = self.manifest["label"].iloc[rows].to_numpy(np.int64)
        subjects = self.manifest["subject_id"].iloc[rows].to_numpy(str)
        return Labelled(images, copies, self.swapped(rows), truth, subjects)


def draws_of(cache: Cache, config: Config) -> list[NDArray[np.intp]]:
    """The rows that the probe's draws hold."""
    rows, probe = cache.rows("train"), config.probe
    subjects = cache.manifest["subject_id"].iloc[rows].to_numpy(str)
    labels = cache.manifest["label"].iloc[rows].to_numpy(np.int64)
    drawn = repeated_draws(subjects, labels, probe.label_fraction, probe.repeats, config.seed)
    return [rows[chosen] for chosen in drawn]


def study(
    cache: Cache, config: Config, recipe: Recipe, folder: Path, device: str
) -> list[pd.DataFrame]:
    """Predictions of test and validation images by a network for each draw, kept in ``folder``.

    Columns: ``split`` (``validation_swapped`` for swapped copies), ``image_id``, ``subject_id``,
    ``label``, ``probability``, ``threshold``, ``seconds`` that the draw took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for number, drawn in enumerate(draws_of(cache, config)):
        file = folder / f"draw-{number:02d}.parquet"
        if not file.exists():
            aside = file.with_name(f".{file.name}")
            _one_draw(cache, drawn, config, recipe, number, device).to_parquet(aside, index=False)
            aside.replace(file)
        tables.append(pd.read_parquet(file))
    return tables


def _one_draw(
    cache: Cache,
    drawn: NDArray[np.intp],
    config: Config,
    recipe: Recipe,
    number: int,
    device: str,
) -> pd.DataFrame:
    started = time.perf_counter()
    seed = epoch_seed(config.seed, number)
    classifier = train(cache.labelled(drawn), recipe, config.pretrain, seed, device)
    validation, test = cache.rows("validation"), cache.rows("test")
    judged = {
        "test": (test, cache.images(test)),
        "validation": (validation, cache.images(validation)),
        "validation_swapped": (validation, cache.swapped(validation)),
    }
    parts = [
        cache.manifest.iloc[rows][["image_id", "subject_id", "label"]].assign(
            split=split, probability=classifier.predict(images), threshold=classifier.threshold
        )
        for split, (rows, images) in judged.items()
        if images is not None
    ]
    seconds = time.perf_counter() - started
    told = f"epoch {classifier.best} of {classifier.epochs} kept, {seconds:.0f} s"
    print(f"draw {number}: {len(drawn)} images, {told}", file=sys.stderr)
    return pd.concat(parts).astype({"label": np.int64}).assign(seconds=seconds)


def main() -> None:
    """Run the study and write its page."""
    parsed, options = arguments(main.__doc__ or "")
    configs = [configuration(parsed, f"probe.label_fraction={share}") for share in FRACTIONS]
    recipe, made_on = Recipe(), provenance(configs[0])
    results, leads, sections = [], [], []
    for config in configs:
        result = run("probe", config, options)
        if result.get("headline", "auroc") != "auroc" or config.probe.label_subsets == "official":
            raise UserError("benchmark-supervised is for two classes and labels drawn at random")
        probe = find(Path(result["artifact"]))
        assert probe is not None
        ingest = made_from(made_from(probe, "extract"), "ingest")
        cache = Cache(
            ingest.folder, read_manifest(ingest.folder / "manifest.csv"), config.ingest.swap.enabled
        )
        folder = _folder(config, recipe, ingest, options.artifacts)
        tables = study(cache, config, recipe, folder, choose_device(options.device))
        predictions = pd.read_parquet(probe.folder / "predictions.parquet")
        own, lead = compared(predictions, tables, config)
        results.append(_beside(result, own))
        leads.append(lead)
        sections += _section(config, results[-1], lead, tables)
    page = DOCS / f"SUPERVISED-{configs[0].name}.md"
    picture = DOCS / f"supervised-{configs[0].name}.png"
    draw_label_efficiency({r["label_fraction"]: r for r in results}, picture)
    lines = _head(configs[0], recipe, made_on, picture.name)
    lines += _by_fraction(results, leads) + sections
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(page)


def _folder(config: Config, recipe: Recipe, ingest: Artifact, artifacts: Path) -> Path:
    content = {
        "seed": config.seed,
        "recipe": recipe.model_dump(mode="json"),
        "views": config.pretrain.model_dump(mode="json", include={"augment", "photometric"}),
        "swapped_share": config.pretrain.contrast.swapped_share,
        "label_fraction": config.probe.label_fraction,
    }
    name = fingerprint("supervised", content, {"ingest": ingest.fingerprint})
    return artifacts / config.name / "supervised" / name


def compared(
    predictions: pd.DataFrame, tables: list[pd.DataFrame], config: Config
) -> tuple[dict[str, metrics.Interval], dict[str, metrics.Interval]]:
    """The network's metrics, and MedVQ's less the network's, on the same resampled subjects."""
    ours = [draw for _, draw in predictions.query("features == 'medvq'").groupby("draw")]
    theirs = [table[table["split"] == "test"] for table in tables]
    assert all(
        a["image_id"].tolist() == b["image_id"].tolist() for a, b in zip(ours, theirs, strict=True)
    )
    resamples, seed = config.probe.bootstrap, config.seed
    weights = metrics.subject_weights(ours[0]["subject_id"].to_numpy(str), resamples, seed)
    repeats = metrics.draw_weights(len(ours), resamples, seed)

    def over(draws: list[pd.DataFrame]) -> dict[str, tuple[Floats, Floats]]:
        def compute(number: int, given: Floats) -> dict[str, Floats]:
            draw = draws[number]
            said, threshold = draw["probability"].to_numpy(), float(draw["threshold"].iloc[0])
            return _TASK.evaluate(draw["label"].to_numpy(np.int64), said, threshold, given)

        return metrics.over_draws(compute, len(draws), weights)

    medvq, network = over(ours), over(theirs)
    own = {name: metrics.interval(*network[name], repeats) for name in METRICS}
    lead = {
        name: metrics.interval(
            medvq[name][0] - network[name][0], medvq[name][1] - network[name][1], repeats
        )
        for name in METRICS
    }
    return own, lead


def _beside(result: dict[str, Any], own: dict[str, metrics.Interval]) -> dict[str, Any]:
    """What the probe's run found, of the rows shown here, and of the network beside them."""
    rows = [row for row in result["rows"] if row["features"] in SHOWN]
    return {**result, "rows": [*rows, {"features": ROW, **own}]}


def _head(config: Config, recipe: Recipe, made_on: str, picture: str) -> list[str]:
    return [
        f"# A ResNet-18 from scratch on the same labels: {config.name}",
        "",
        f"Made by `make benchmark-supervised DATASET={config.name}`. {made_on}",
        "",
        "The same draws of labels for all rows; test split, mean and 95% interval of a bootstrap "
        "over test subjects crossed with draws.",
        "",
        f"The network: MONAI's `resnet18` (stem of stride 2) on images averaged to {recipe.size} "
        f"pixels, AdamW at {recipe.learning_rate:g} (weight decay {recipe.weight_decay:g}), "
        f"batches of {recipe.batch_size}, a cosine after {recipe.warmup_steps} steps of warm-up, "
        f"at least 600 steps, the best epoch by one in {recipe.folds} drawn subjects held out; "
        "the same aligned images, random views as pretraining's, at strength "
        f"{recipe.augment_strength:g}, and acquisition-swapped copies among them.",
        "",
        f"![label efficiency]({picture})",
    ]


def _by_fraction(
    results: list[dict[str, Any]], leads: list[dict[str, metrics.Interval]]
) -> list[str]:
    """The AUROC of every row, and MedVQ's lead, one column per fraction."""
    counted = [f"{100 * r['label_fraction']:g}% ({r['labels']} images)" for r in results]
    rows = [{row["features"]: row for row in r["rows"]} for r in results]
    return [
        "",
        "## AUROC",
        "",
        table_row("features", counted),
        table_row("---", ["---"] * len(results)),
        *(table_row(name, [interval(r[name]["auroc"]) for r in rows]) for name in rows[0]),
        table_row(f"medvq less {ROW}", [interval(lead["auroc"], "+") for lead in leads]),
    ]


def _section(
    config: Config,
    result: dict[str, Any],
    lead: dict[str, metrics.Interval],
    tables: list[pd.DataFrame],
) -> list[str]:
    seconds = np.mean([table["seconds"].iloc[0] for table in tables])
    validation = ", ".join(
        f"{split.replace('_', ' ')} {_validation(tables, split):.3f}"
        for split in tables[0]["split"].unique()
        if split != "test"
    )
    return [
        "",
        f"## At {100 * config.probe.label_fraction:g}% of the labels",
        "",
        f"{result['labels']} images, {result['repeats']} draw(s), {seconds:.0f} s each. AUROC of "
        f"the network on validation images: {validation}.",
        "",
        table_row("features", METRICS),
        table_row("---", ["---"] * len(METRICS)),
        *(
            table_row(row["features"], [interval(row[m]) for m in METRICS])
            for row in result["rows"]
        ),
        table_row(f"medvq less {ROW}", [interval(lead[m], "+") for m in METRICS]),
    ]


def _validation(tables: list[pd.DataFrame], split: str) -> float:
    parts = [table[table["split"] == split] for table in tables]
    return float(np.mean([roc_auc_score(p["label"], p["probability"]) for p in parts]))


if __name__ == "__main__":
    run_study(main)
