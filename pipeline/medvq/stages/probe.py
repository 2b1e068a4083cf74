"""The stage ``probe``: linear probes fitted on label subsets, judged on images held back.

Writes into its artifact:

====================== =========================================================================
``metrics.json``       the summary: rows of metrics, and MedVQ's differences to each baseline
``predictions.parquet`` one row per test image, feature set and label subset: of two classes the
                       probability of class 1 and the threshold, which is the prevalence of the
                       label subset; of more classes the predicted class and its probability; of a
                       number the predicted one
``probe.safetensors``  MedVQ's probe of the first label subset, from features to a prediction, see
                       :mod:`medvq.storage.probe_file`
====================== =========================================================================

A number is predicted where the data set has one (rows are compared by R^2), else the label (two
classes: by AUROC; more: by accuracy). Images without either take no part. A baseline that means
nothing for a data set (``border_only`` where acquisitions are not swapped, HOG of volumes,
``images_per_subject`` where each has one) is not in the feature store and has no row.

Images held back are those of the test split. With ``probe.evaluate=cross_validation`` they are all
labelled images, each judged by a probe that was not fitted on its subject: ``predictions.parquet``
has a row per labelled image, feature set and repeat (``label_subset``), with the threshold of the
fold's probe, and ``probe.safetensors`` is fitted on a label subset of all of them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from medvq.stages.extract import EXTRACT
from medvq.stages.ingest import INGEST
from medvq.stages.stage import Stage
from medvq.storage.artifacts import StageContext
from medvq.summaries import ProbeSummary
from medvq.tracked_runs import tracked_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from medvq.config import Config, ProbeConfig
    from medvq.evaluation.probing import FeatureSetResult, ProbeJudge
    from medvq.storage.artifacts import Artifact
    from medvq.storage.encoded_features import FeatureStore
    from medvq.summaries import LabelScores

MEDVQ, EXTERNAL = "medvq", "external"
"""The row of the feature sets that the configuration chooses."""
BASELINES = (
    "raw_pixels",
    "hog",
    "untrained_encoder",
    "frozen_imagenet",
    "external",
    "border_only",
    "images_per_subject",
)
SINGLE_SETS = ("histogram", "pyramid", "quantized", "latent", "embedding")
"""Feature sets of the trained network that have a row each, after the baselines."""


def check(config: Config, inputs: Mapping[str, Artifact]) -> None:
    """Refuse a fraction of the labels that is too small, by the manifest of a data set."""
    from medvq.datasets.manifest import read_manifest
    from medvq.evaluation.label_check import check_label_fraction

    if INGEST.name in inputs:
        manifest = read_manifest(inputs[INGEST.name].folder / "manifest.csv")
        check_label_fraction(manifest, config.probe)


def run(context: StageContext) -> ProbeSummary:
    """Probe every feature set; write metrics, predictions and MedVQ's probe."""
    import numpy as np
    import pandas as pd

    from medvq.evaluation.cross_validation import CrossValidationJudge
    from medvq.evaluation.probing import ProbeJudge
    from medvq.storage.encoded_features import FeatureStore

    config = context.config.probe
    store = FeatureStore(context.inputs["extract"].folder)
    store.check(config.features)
    cross_validated = config.evaluate == "cross_validation"
    kind = CrossValidationJudge if cross_validated else ProbeJudge
    judge = kind(store.keys, store.metadata.classes, config, context.config.seed)
    results, label_scores, constant = _judge_all(context, store, judge)
    medvq, data, subsets = results[MEDVQ], judge.data, judge.subsets
    for number in range(judge.repeats):
        values = {
            tracked_name(name, data.task.headline): float(metric.cells[0, number])
            for name, metric in medvq.metrics.items()
        }
        context.report(values, number)
    summary = ProbeSummary(
        label_fraction=config.label_fraction,
        labels=int(np.median([len(rows) for rows in subsets])),
        subjects=len(np.unique(data.subjects[subsets[0]])),
        repeats=judge.repeats,
        classes=store.metadata.classes if data.task.truth_column == "label" else [],
        threshold=medvq.probes[0].threshold,
        rows=[result.row for result in results.values()],
        medvq_minus={
            name: judge.difference(medvq, results[name])
            for name in BASELINES
            # An encoder of the user's own that is judged alone is no baseline of itself.
            if name in results and not (name == "external" and config.features == (name,))
        },
        task=data.task.name(store.metadata.target),
        headline=data.task.headline,
        evaluate=config.evaluate,
        outer_folds=config.outer_folds if cross_validated else None,
        label_scores=label_scores,
        constant=constant,
    )
    predictions = pd.concat([result.predictions for result in results.values()])
    predictions.to_parquet(context.folder / "predictions.parquet", index=False)
    text = json.dumps(summary.to_json(), indent=2)
    (context.folder / "metrics.json").write_text(text, encoding="utf-8")
    return summary


def _judge_all(
    context: StageContext, store: FeatureStore, judge: ProbeJudge
) -> tuple[dict[str, FeatureSetResult], LabelScores | None, bool]:
    """Judge every feature set, MedVQ's first and on parts of its labels; save MedVQ's probe.

    Returns
    -------
    The results, the scores of parts of the labels, and whether the saved probe gives
    nearly one answer.
    """
    from sklearn.pipeline import make_pipeline
    from tqdm import tqdm

    from medvq.storage.encoding_cache import encode
    from medvq.storage.probe_file import save_probe

    extract, train = context.inputs["extract"], judge.data.unlabelled_train
    config, seed = context.config.probe, context.config.seed
    results: dict[str, FeatureSetResult] = {}
    label_scores, constant = None, False
    others = [name for name in (*BASELINES, *SINGLE_SETS) if name in store.names]
    bar = tqdm([MEDVQ, *others], desc="probing", unit=" feature sets")
    for name in bar:
        bar.set_postfix_str(name)
        features = config.features if name == MEDVQ else (name,)
        search = of_baselines(config) if name in BASELINES else config
        alike = search == config or name == EXTERNAL
        if name != MEDVQ and features == config.features and alike:
            results[name] = results[MEDVQ].renamed(name)
            continue
        encoding, encoded = encode(extract, store, features, search, seed, train, context.cache)
        results[name] = judge.judge(name, encoded, search)
        if name == MEDVQ:
            steps = [step for _, step in encoding.steps]
            probe = make_pipeline(*steps, results[MEDVQ].probes[0].classifier)
            save_probe(probe, context.folder)
            constant = judge.gives_one_answer(results[MEDVQ].probes[0], encoded)
            label_scores = judge.label_scores(results[MEDVQ], encoded, config, seed)
    return results, label_scores, constant


def of_baselines(config: ProbeConfig) -> ProbeConfig:
    """Return the settings of baselines: larger values of C to choose besides, and no whitening."""
    largest = max(config.regularisation)
    larger = tuple(largest * factor for factor in config.larger_for_baselines)
    regularisation = (*config.regularisation, *larger)
    return config.model_copy(update={"regularisation": regularisation, "whitening": None})


def draw(context: StageContext, summary: ProbeSummary) -> None:
    """Draw ROC, calibration, decision and abstention curves, or predictions against the truth."""
    from medvq.report.probe_figures import draw_probe

    draw_probe(context.folder, summary, context.figures)


def table(summary: ProbeSummary) -> list[str]:
    """Return the lines for people."""
    from medvq.report.tables import probe_table

    return probe_table(summary)


def page(artifact: Artifact) -> Path:
    """Write the report of the data set."""
    from medvq.report.report_file import is_of, report_file

    folder = artifact.folder.resolve().parents[1]
    if is_of(file := report_file(folder), artifact):
        return file
    from medvq.report.report_page import write_report

    return write_report(folder, artifact.folder)


PROBE = Stage(
    name="probe",
    help="fit the linear probe on a fraction of the labels and judge it on images held back",
    settings=lambda config: config.probe.model_dump(mode="json"),
    run=run,
    summary=ProbeSummary,
    table=table,
    reads=(EXTRACT,),
    check=check,
    draw=draw,
    label=lambda config: f"medvq {100 * config.probe.label_fraction:g}%",
    page=page,
)
