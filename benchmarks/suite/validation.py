"""The validation score of a row, which defaults are chosen by: it never reads the test split.

A large validation split is judged as the probe does. A small one would say little: there training
images are divided by subject into five parts, four times, and each part is judged by the probe of a
label subset of the other four. The encoder has seen the images of that part, without their labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from medvq.config import Config, ProbeConfig
from medvq.evaluation.label_subsets import draw_subset, partition_subjects
from medvq.evaluation.probe_data import ProbeData
from medvq.method.probe import CLEAN_WEIGHT, fit_probe
from medvq.stages.probe import BASELINES, MEDVQ, of_baselines
from medvq.storage.artifacts import Artifact, source
from medvq.storage.encoded_features import FeatureStore
from medvq.summaries import Validation

from benchmarks.study import Probed
from benchmarks.suite.cells import mean_validation

ENOUGH = 300
"""Validation images with a truth from which on their score is taken."""
REPEATS = 4
FOLDS = 5


def validate(probes: Sequence[Probed], features: str, folder: Path) -> Validation:
    """Return the validation score of a feature set, mean over trainings.

    Parameters
    ----------
    folder : keeps what cross-validation gave.
    """
    return mean_validation([_validate(probe, features, folder) for probe in probes])


def is_cross_validated(extract: Artifact) -> bool:
    """Return whether a data set has too few validation images for their score to say much."""
    return len(ProbeData.from_keys(FeatureStore(extract.folder).keys).validation) < ENOUGH


def _validate(probe: Probed, features: str, folder: Path) -> Validation:
    extract = source(probe.artifact, "extract")
    if not is_cross_validated(extract):
        known = next(r for r in probe.summary.rows if r.features == features).validation
        assert known is not None
        return known
    file = folder / f"validation-{probe.artifact.fingerprint}-{features}.json"
    if not file.exists():
        score = _cross_validate(extract, features, probe.config)
        file.write_text(json.dumps(asdict(score)), encoding="utf-8")
    return Validation(**json.loads(file.read_text(encoding="utf-8")))


def _cross_validate(extract: Artifact, features: str, config: Config) -> Validation:
    names = config.probe.features if features == MEDVQ else (features,)
    search = of_baselines(config.probe) if features in BASELINES else config.probe
    return cross_validate(FeatureStore(extract.folder), names, search, config.seed)


def cross_validate(
    store: FeatureStore, names: Sequence[str], config: ProbeConfig, seed: int
) -> Validation:
    """Return the score of feature sets by repeated cross-validation inside the training split."""
    data = ProbeData.from_keys(store.keys)
    task, train = data.task, data.train
    _, encoded = store.encode(names, config, seed, data.unlabelled_train)
    subjects, strata = data.subjects[train], task.strata(data.truth[train])
    passes = [encoded.images] if encoded.swapped is None else [encoded.images, encoded.swapped]
    scores = []
    for repeat in range(REPEATS):
        for part in partition_subjects(subjects, strata, FOLDS, (seed, repeat)):
            others = np.delete(np.arange(len(train)), part)
            drawn = draw_subset(
                subjects[others], strata[others], config.label_fraction, 1000 * seed + repeat
            )
            rows, held_out = train[others[drawn]], train[part]
            probe = fit_probe(encoded, data.truth, data.subjects, rows, config, task)
            scores.append(
                [
                    task.validation_score(
                        data.truth[held_out], task.scores(probe.classifier, images[held_out])
                    )
                    for images in passes
                ]
            )
    clean, *swapped = np.mean(scores, axis=0).tolist()
    if not swapped:
        return Validation(clean, None, clean)
    return Validation(clean, swapped[0], CLEAN_WEIGHT * clean + (1 - CLEAN_WEIGHT) * swapped[0])
