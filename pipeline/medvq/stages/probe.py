"""The stage ``probe``: feature store and drawn labels in, honest figures out.

Writes into its artifact:

====================== =========================================================================
``metrics.json``       the rows of the contract, and MedVQ's differences to each baseline
``predictions.parquet`` one row per test image, feature set and draw: the probability of class 1
                       and the threshold, which is the drawn prevalence; of more classes the class
                       that is called and its probability; of a number the number
``probe.skops``        encoding and classifier of the first draw, from features to probability
====================== =========================================================================

What is predicted is what the data set has: a number where it has one (rows by R^2), else classes
(two: rows by AUROC; more: rows by accuracy). Images without a label take no part. Baselines that
mean nothing for a data set (border only where acquisitions are not swapped, HOG of volumes) are
not in its store and have no row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.pipeline import Pipeline, make_pipeline
from tqdm import tqdm

from medvq.config import ProbeConfig
from medvq.errors import UserError
from medvq.evaluation import metrics
from medvq.evaluation.label_subsets import repeated_draws
from medvq.evaluation.tasks import Binary, Multiclass, Regression, Task
from medvq.method.encodings import BlockScaler, CodeHistogram, Encoding, pyramid_grids
from medvq.method.probe import CLEAN_WEIGHT, FittedProbe, ProbeFeatures, fit_probe
from medvq.stages.extract import SWAPPED, augmented
from medvq.storage.artifacts import StageContext
from medvq.storage.feature_store import (
    FEATURES,
    VERSIONS,
    feature_names,
    read_feature,
    read_keys,
    read_metadata,
)

BASELINES = ("raw_pixels", "hog", "untrained_encoder", "border_only")
_CODE_SETS = ("histogram", "pyramid")
_OWN_SETS = (*_CODE_SETS, "quantized", "latent", "embedding")
MEDVQ = "medvq"
PROBE = "probe.skops"
_MOST_AT_ONCE = 10_000


@dataclass(frozen=True)
class ProbeData:
    """Who is in the store: one entry per image, in its order.

    Attributes
    ----------
    task : what is to be predicted.
    truth : the class (-1 where unknown) or the number of each image.
    unlabelled_train : all rows of the training split, ``train`` those with a truth.
    folds : the official label draws, rows of each; none where there are none.
    """

    task: Task
    truth: NDArray[Any]
    subjects: NDArray[np.str_]
    unlabelled_train: NDArray[np.intp]
    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    test: NDArray[np.intp]
    folds: list[NDArray[np.intp]]


def probe(context: StageContext) -> dict[str, Any]:
    """Run the stage; return its summary."""
    config, folder = context.config.probe, context.inputs["extract"].folder
    store = Store(folder)
    _check_features(config, store)
    images = images_of(store)
    task = images.task
    draws = label_draws(images, config, context.config.seed)
    weights = metrics.subject_weights(
        images.subjects[images.test], config.bootstrap, context.config.seed
    )
    repeats = metrics.draw_weights(len(draws), config.bootstrap, context.config.seed)
    sets: dict[str, tuple[str, ...]] = {MEDVQ: config.features}
    baselines = [name for name in BASELINES if name in store.names]
    sets |= {name: (name,) for name in baselines}
    sets |= {name: (name,) for name in _OWN_SETS if stored_name(name) in store.names}
    rows: list[dict[str, Any]] = []
    predictions: list[pd.DataFrame] = []
    resampled: dict[str, tuple[metrics.Floats, metrics.Floats]] = {}
    bar = tqdm(sets.items(), desc="probing", unit=" feature sets")
    for name, features in bar:
        bar.set_postfix_str(name)
        search = _for_baselines(config) if name in baselines else config
        if name != MEDVQ and features == config.features and search == config:
            rows.append(rows[0] | {"features": name})
            predictions.append(predictions[0].assign(features=name))
            resampled[name] = resampled[MEDVQ]
            continue
        encoding, encoded = store.encode(
            features, config, context.config.seed, images.unlabelled_train
        )
        fitted = [
            fit_probe(encoded, images.truth, images.subjects, drawn, search, task)
            for drawn in draws
        ]
        predicted = [task.predict(f.classifier, encoded.images[images.test]) for f in fitted]
        over = _over_draws(images, predicted, fitted, weights)
        row = {metric: metrics.interval(*over[metric], repeats) for metric in task.metrics}
        validation = _validate(encoded, images, fitted, draws)
        rows.append({"features": name, **row, "validation": validation})
        truth = images.truth[images.test]
        if recall := task.recall(truth, predicted, store.metadata["classes"]):
            rows[-1]["recall"] = recall
        resampled[name] = over[task.headline]
        predictions.append(_predictions(name, store.keys, images, predicted, fitted, config))
        if name == MEDVQ:
            model = make_pipeline(*(step for _, step in encoding.steps), fitted[0].classifier)
            skops.io.dump(model, context.folder / PROBE)
            threshold = fitted[0].threshold
            _report_draws(context, over, draws)
    paired = {name: _paired(resampled[MEDVQ], resampled[name], repeats) for name in baselines}
    drawn = [len(d) for d in draws]
    summary = {
        "label_fraction": config.label_fraction,
        "labels": int(np.median(drawn)),
        "subjects": len(np.unique(images.subjects[draws[0]])),
        "repeats": len(draws),
        "classes": store.metadata["classes"],
        "threshold": threshold,
        "rows": rows,
        "medvq_minus": paired,
    }
    if not isinstance(task, Binary):
        number = store.metadata["target"] or "target"
        summary["task"] = number if isinstance(task, Regression) else "classes"
        summary["headline"] = task.headline
    pd.concat(predictions).to_parquet(context.folder / "predictions.parquet", index=False)
    (context.folder / "metrics.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    return summary


class Store:
    """Feature sets by name, for images and versions alike."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = read_keys(folder / FEATURES)
        self.version_keys = self.keys.iloc[:0].assign(version="")
        if (folder / VERSIONS).exists():
            self.version_keys = read_keys(folder / VERSIONS, "version")
        self.metadata = read_metadata(folder / FEATURES)
        self.names = feature_names(folder / FEATURES)
        position = pd.Series(np.arange(len(self.keys)), index=self.keys["image_id"])
        self.rows_of_versions = position[self.version_keys["image_id"]].to_numpy()

    def encode(
        self, names: Sequence[str], config: ProbeConfig, seed: int, train: NDArray[np.intp]
    ) -> tuple[Pipeline, ProbeFeatures]:
        """Fit the encoding of a feature set on all training images, without labels; apply it."""
        stored = [stored_name(name) for name in names]
        images = [read_feature(self.folder / FEATURES, name) for name in stored]
        versions = [block[:0] for block in images]
        if len(self.version_keys):
            versions = [read_feature(self.folder / VERSIONS, name) for name in stored]
        widths = [block.shape[1] for block in images]
        encoding = self._encoding(names, widths, min(len(train), len(self.keys) // 2), config, seed)
        whole = np.concatenate(images, axis=1)
        others = np.concatenate(versions, axis=1)
        known = self.version_keys["version"].to_numpy()
        fit_on = [whole[train]]
        if np.any(known == augmented(0)):
            fit_on.append(others[known == augmented(0)])
        table = np.concatenate(fit_on)
        # Evenly spaced: the components of more would take minutes, and be the same.
        encoding.fit(table[:: -(-len(table) // _MOST_AT_ONCE)])
        encoded_images = _transformed(encoding, whole)
        encoded_others = _transformed(encoding, others) if len(others) else encoded_images[:0]

        def version(name: str) -> NDArray[np.float64]:
            full = np.zeros_like(encoded_images)
            chosen = known == name
            full[self.rows_of_versions[chosen]] = encoded_others[chosen]
            return full

        random = [name for name in np.unique(known) if name != SWAPPED]
        swapped = version(SWAPPED) if SWAPPED in known else None
        return encoding, ProbeFeatures(encoded_images, [version(n) for n in random], swapped)

    def _encoding(
        self, names: Sequence[str], widths: list[int], most: int, config: ProbeConfig, seed: int
    ) -> Pipeline:
        steps: list[BaseEstimator]
        if len(names) == 1 and names[0] in _CODE_SETS:
            grids = (1,) if names[0] == "histogram" else pyramid_grids(self.metadata["grid"])
            size, shape = self.metadata["codebook_size"], tuple(self.metadata["latent_shape"])
            histogram = CodeHistogram(size, shape, grids)
            width = size * sum(grid ** len(shape) for grid in grids)
            components = min(config.components, width - 1, most)
            steps = [histogram, TruncatedSVD(components, random_state=seed), _Stretch()]
        else:
            components = min(config.components, sum(widths), most)
            pca = PCA(components, svd_solver="randomized", random_state=seed)
            steps = [BlockScaler(widths), pca, _Stretch()]
        return make_pipeline(*steps)


def stored_name(name: str) -> str:
    """The column of the feature store that a feature set is made from."""
    return "codes_0" if name in _CODE_SETS else name


def _transformed(encoding: Pipeline, table: NDArray[Any]) -> NDArray[np.float64]:
    """In parts, since wide features of many images take gigabytes in double precision."""
    parts = range(0, len(table), _MOST_AT_ONCE)
    return np.concatenate(
        [np.asarray(encoding.transform(table[at : at + _MOST_AT_ONCE]), np.float64) for at in parts]
    )


class _Stretch(Encoding):
    """Multiplies by the one number that brings the mean squared norm to a thousand.

    One range of C then serves every feature set, however wide.
    """

    def fit(self, X: NDArray[Any], y: object = None) -> _Stretch:
        table = np.asarray(X)
        centred = table - table.mean(0)
        self.factor_ = float(np.sqrt(1000 / np.maximum((centred**2).sum(1).mean(), 1e-12)))
        return self

    def transform(self, X: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(X) * self.factor_


def _for_baselines(config: ProbeConfig) -> ProbeConfig:
    """Return ``config`` with the larger values of C that baselines may choose besides."""
    largest = max(config.regularisation)
    larger = tuple(largest * factor for factor in config.larger_for_baselines)
    return config.model_copy(update={"regularisation": (*config.regularisation, *larger)})


def _check_features(config: ProbeConfig, store: Store) -> None:
    if unknown := [name for name in config.features if name not in store.names]:
        raise UserError(
            f"probe.features={unknown[0]!r} is not in the feature store; "
            f"it holds: {', '.join(store.names)}"
        )
    mixed = [name for name in config.features if name in _CODE_SETS]
    if mixed and len(config.features) > 1:
        raise UserError(f"probe.features: {mixed[0]!r} cannot be joined with other feature sets")


def images_of(store: Store) -> ProbeData:
    """Who is in the store, and what is to be predicted of them.

    Raises
    ------
    UserError
        There is nothing to predict, or not in every split.
    """
    keys = store.keys
    task, truth = _task(keys)
    known = task.known(truth)
    split = keys["split"].to_numpy()
    rows = {
        name: np.flatnonzero((split == name) & known) for name in ("train", "validation", "test")
    }
    for name, chosen in rows.items():
        task.check_split(name, truth[chosen], len(np.unique(truth[known])))
    return ProbeData(
        task,
        truth,
        keys["subject_id"].to_numpy(str),
        np.flatnonzero(split == "train"),
        rows["train"],
        rows["validation"],
        rows["test"],
        _official_folds(keys, np.union1d(rows["train"], rows["validation"])),
    )


def _task(keys: pd.DataFrame) -> tuple[Task, NDArray[Any]]:
    """What there is to predict, and the truth: -1 or NaN where an image has none."""
    if "target" in keys and keys["target"].notna().any():
        return Regression(), keys["target"].to_numpy(np.float64)
    labels = keys["label"].fillna(-1).to_numpy(np.int64)
    number = len(np.unique(labels[labels >= 0]))
    if number == 0:
        raise UserError(
            "no probe: the images have neither labels nor a number to predict. Their features are "
            "in the feature store all the same"
        )
    if number == 1:
        raise UserError("the probe needs two classes; this data set has 1")
    return (Binary() if number == 2 else Multiclass()), labels


def _official_folds(keys: pd.DataFrame, known: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """A published draw is taken whole: its images need not be those of our training part."""
    if "folds" not in keys:
        return []
    member = [set(text.split()) for text in keys["folds"].fillna("").iloc[known]]
    names = sorted(set().union(*member), key=int)
    return [known[[name in folds for folds in member]] for name in names]


def label_draws(images: ProbeData, config: ProbeConfig, seed: int) -> list[NDArray[np.intp]]:
    """Rows of each label draw; with all labels there is only one."""
    fraction = config.label_fraction
    if config.label_subsets == "official":
        return _official_draws(images, fraction)
    subjects = images.subjects[images.train]
    strata = images.task.strata(images.truth[images.train])
    drawn = repeated_draws(subjects, strata, fraction, config.repeats, seed)
    return [images.train[rows] for rows in drawn]


def _official_draws(images: ProbeData, fraction: float) -> list[NDArray[np.intp]]:
    if not images.folds:
        raise UserError(
            "probe.label_subsets=official, but this data set has no official label draws"
        )
    share = len(images.folds[0]) / (len(images.train) + len(images.validation))
    if abs(share - fraction) > 0.01:
        raise UserError(
            f"the official draws of this data set hold {share:.0%} of the labels; "
            f"LABEL_FRACTION={fraction:g} needs probe.label_subsets=random"
        )
    return images.folds


def _over_draws(
    images: ProbeData,
    predicted: list[NDArray[np.float64]],
    fitted: list[FittedProbe],
    weights: NDArray[np.float64],
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    truth = images.truth[images.test]

    def compute(draw: int, given: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return images.task.evaluate(truth, predicted[draw], fitted[draw].threshold, given)

    return metrics.over_draws(compute, len(fitted), weights)


def _validate(
    encoded: ProbeFeatures,
    images: ProbeData,
    fitted: list[FittedProbe],
    draws: list[NDArray[np.intp]],
) -> dict[str, float | None]:
    """The task's score on the validation part of train, as it is and swapped, mean over draws.

    An image that an official draw holds is left out where that draw is judged.
    """
    task = images.task

    def measure(table: NDArray[np.float64]) -> float:
        scores = []
        for probe, drawn in zip(fitted, draws, strict=True):
            rows = np.setdiff1d(images.validation, drawn)
            scores.append(
                task.validation_score(
                    images.truth[rows], task.scores(probe.classifier, table[rows])
                )
            )
        return float(np.mean(scores))

    clean = measure(encoded.images)
    if encoded.swapped is None:
        return {"clean": clean, "swapped": None, "score": clean}
    swapped = measure(encoded.swapped)
    return {
        "clean": clean,
        "swapped": swapped,
        "score": CLEAN_WEIGHT * clean + (1 - CLEAN_WEIGHT) * swapped,
    }


def _paired(
    ours: tuple[NDArray[np.float64], NDArray[np.float64]],
    theirs: tuple[NDArray[np.float64], NDArray[np.float64]],
    repeats: NDArray[np.float64],
) -> metrics.Interval:
    """MedVQ's AUROC less another's, on the same draws and the same resampled subjects."""
    return metrics.interval(ours[0] - theirs[0], ours[1] - theirs[1], repeats)


def _predictions(
    name: str,
    keys: pd.DataFrame,
    images: ProbeData,
    predicted: list[NDArray[np.float64]],
    fitted: list[FittedProbe],
    config: ProbeConfig,
) -> pd.DataFrame:
    test = keys.iloc[images.test]
    return pd.concat(
        pd.DataFrame(
            {
                "features": name,
                "label_fraction": config.label_fraction,
                "draw": draw,
                "image_id": test["image_id"].to_numpy(),
                "subject_id": test["subject_id"].to_numpy(),
                images.task.truth_column: images.truth[images.test],
                **images.task.columns(values, probe.threshold),
            }
        )
        for draw, (values, probe) in enumerate(zip(predicted, fitted, strict=True))
    )


def _report_draws(
    context: StageContext,
    over: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    draws: list[NDArray[np.intp]],
) -> None:
    for number in range(len(draws)):
        context.report({name: float(values[0][number]) for name, values in over.items()}, number)
