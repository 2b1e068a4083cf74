"""The stage ``evaluate``: a fitted probe judged on another data set, with nothing fitted anew.

The images are registered to the template of the probe's own training images, encoded by the model
that encoded those, and classified by the saved probe, with its threshold and calibration. Images
whose pixels were among the training images are left out and counted. The typicality check of the
prior of the training images (:mod:`medvq.prior.typicality`) flags images unlike them and drops
none.

Writes into its artifact:

======================= ========================================================================
``predictions.parquet`` one row per image: the prediction, the truth where it is known, the
                        ``out_of_distribution_score`` (bits per code) and whether it is beyond the
                        threshold (``untypical``)
``metrics.json``        the summary: metrics over all images with a known truth, and typicality
======================= ========================================================================
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medvq.config import Config, FolderSource, Source
from medvq.datasets.classes import plain
from medvq.errors import Notice, UserError
from medvq.stages.extract import EXTRACT
from medvq.stages.prior import PRIOR
from medvq.stages.probe import MEDVQ, PROBE
from medvq.stages.stage import Ensure, RunOptions, Stage
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact, StageContext
from medvq.summaries import EvaluateSummary, ProbeRow, ProbeSummary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medvq.method.targets import Floats, Truth


def prepare(
    config: Config, options: RunOptions, ensure: Ensure
) -> tuple[Config, dict[str, Artifact]]:
    """Read, register and encode the data set of ``config`` as the probe's own images were.

    Nothing is swapped and no random version is made, since nothing is fitted on it. A prior of the
    codes of the probe's own images, trained where there is none, knows what is typical of them.

    Returns
    -------
    The configuration that the probe's own images were prepared with, for this data set; and the
    artifacts that :func:`run` reads.
    """
    if options.probe is None:
        raise UserError("evaluate needs --probe (PROBE=): the artifact of a fitted probe")
    probe = artifacts.finished(options.probe, PROBE.name)
    extract = artifacts.source(probe, "extract")
    if "pretrain" not in extract.record.inputs:
        raise UserError(
            f"{options.probe} has no VQ-VAE, whose codes say what is typical: make it anew with "
            "encoder.with_vqvae=true to judge it on another data set"
        )
    ingest, pretrain = (artifacts.source(extract, name) for name in ("ingest", "pretrain"))
    trained = probe.config()
    swap = trained.ingest.swap.model_copy(update={"enabled": False})
    changed = trained.model_copy(
        update={
            "name": config.name,
            "description": config.description,
            "source": config.source,
            "ingest": trained.ingest.model_copy(update={"swap": swap}),
            "extract": trained.extract.model_copy(update={"versions": 0}),
        }
    )
    # First, so that an error in the new images is shown before minutes of training.
    encoded = ensure(
        EXTRACT, changed, {"ingest": {"reference": ingest}, "extract": {"pretrain": pretrain}}
    )
    prior = prior_of(extract, ensure)
    return changed, {
        "probe": probe,
        "reference": ingest,
        "prior": prior,
        "ingest": artifacts.source(encoded, "ingest"),
        "extract": encoded,
    }


def prior_of(extract: Artifact, ensure: Ensure) -> Artifact:
    """Return the prior of all codes of an artifact of ``extract``, trained where there is none."""
    trained = extract.config()
    unconditional = trained.prior.model_copy(update={"only_class": None})
    return ensure(
        PRIOR,
        trained.model_copy(update={"prior": unconditional}),
        {"prior": {"extract": extract}},
        f"what is typical of {trained.name} is learnt from its stored codes: minutes, once",
    )


def run(context: StageContext) -> EvaluateSummary:
    """Predict and judge the new images; there are no rows where no truth is known.

    Raises
    ------
    UserError
        A class is unknown to the probe, or every image was among its training images.
    """
    import numpy as np
    import pandas as pd

    from medvq.evaluation.tasks import TASKS
    from medvq.prior.typicality import TypicalityCheck
    from medvq.storage.feature_store import FEATURES, read_feature, read_keys, read_metadata
    from medvq.storage.probe_file import load_probe

    probe, store = context.inputs["probe"], context.inputs["extract"].folder / FEATURES
    trained = probe.summary(ProbeSummary)
    task, model, keys = TASKS[trained.headline], load_probe(probe.folder), read_keys(store)
    new = ~keys["image_id"].isin(_training_images(context, trained)).to_numpy()
    if not new.any():
        raise UserError("every image was among the training images of the probe: nothing is new")
    features = np.concatenate([read_feature(store, name) for name in model[0].names], axis=1)
    predicted = task.predict(model, features[new])
    classes = read_metadata(store).classes
    if _is_no_class(classes, trained.classes, context.config.source):
        keys["label"] = pd.NA
        classes = []
    truth = task.truth_elsewhere(keys[new], classes, trained.classes)
    check, scores = TypicalityCheck.read(context.inputs["prior"].folder), _scores(context, new)
    keys[new][["image_id", "subject_id"]].assign(
        **{task.truth_column: truth},
        **task.columns(predicted, trained.threshold),
        out_of_distribution_score=scores,
        untypical=scores > check.threshold,
    ).to_parquet(context.folder / "predictions.parquet", index=False)
    subjects = keys["subject_id"].to_numpy(str)[new]
    summary = EvaluateSummary(
        rows=_rows(context, trained, truth, predicted, subjects),
        probe=probe.fingerprint,
        images=int(new.sum()),
        labelled=int(task.known(truth).sum()),
        seen_in_training=int((~new).sum()),
        label_fraction=trained.label_fraction,
        headline=task.headline,
        typicality=check.judge(scores),
    )
    text = json.dumps(summary.to_json(), indent=2)
    (context.folder / "metrics.json").write_text(text, encoding="utf-8")
    return summary


def _is_no_class(classes: Sequence[str], trained_classes: Sequence[str], source: Source) -> bool:
    """Return whether one folder holds all images and is named after no class; warn of it."""
    if len(classes) != 1 or not trained_classes or not isinstance(source, FolderSource):
        return False
    by_folders = source.labels is None or source.labels.join == "folders"
    known = {plain(name) for name in trained_classes} | set(map(str, range(len(trained_classes))))
    if not by_folders or plain(classes[0]) in known:
        return False
    warnings.warn(
        Notice(
            f"all images lie in the folder '{classes[0]}', which is no class of the probe "
            f"({', '.join(trained_classes)}): they count as images without a label"
        ),
        stacklevel=2,
    )
    return True


def _rows(
    context: StageContext,
    trained: ProbeSummary,
    truth: Truth,
    predicted: Floats,
    subjects: NDArray[np.str_],
) -> list[ProbeRow]:
    """Return the metrics of the predictions, with intervals over subjects alone."""
    import numpy as np

    from medvq.evaluation.intervals import interval, resample, subject_weights
    from medvq.evaluation.metrics import range_of
    from medvq.evaluation.tasks import TASKS

    task = TASKS[trained.headline]
    known = task.known(truth)
    truth, predicted = truth[known], predicted[known]
    if len(np.unique(truth)) < 2:
        return []
    resamples, seed = context.config.probe.bootstrap, context.config.seed
    metrics = resample(
        lambda _subset, weights: task.evaluate(truth, predicted, trained.threshold, weights),
        1,
        subject_weights(subjects[known], resamples, seed),
    )
    intervals = {name: interval(value, *range_of(name)) for name, value in metrics.items()}
    return [ProbeRow(MEDVQ, intervals)]


def _scores(context: StageContext, rows: NDArray[np.bool_]) -> Floats:
    """Return the out-of-distribution scores of ``rows`` of the store, in bits per code."""
    import torch

    from medvq.prior.code_prior import negative_log_likelihood
    from medvq.prior.codes import read_codes
    from medvq.prior.typicality import TypicalityCheck
    from medvq.prior.weights import load_prior

    maps = read_codes(context.inputs["extract"])
    prior = load_prior(context.inputs["prior"].folder, maps.codebook)
    codes = maps.codes[torch.from_numpy(rows)]
    return TypicalityCheck.score(negative_log_likelihood(prior.to(context.device), codes))


def _training_images(context: StageContext, trained: ProbeSummary) -> NDArray[np.str_]:
    """Return the identifiers of the images that the probe or its encoder may be fitted on."""
    from medvq.datasets.manifest import read_manifest

    manifest = read_manifest(context.inputs["reference"].folder / "manifest.csv")
    fitted = manifest["split"] != "test"
    if trained.evaluate == "cross_validation":
        # Its probe may be fitted on any labelled image.
        fitted |= (manifest["label_name"] != "") | manifest["target"].notna()
    return manifest.loc[fitted, "image_id"].to_numpy(str)


def draw(context: StageContext, summary: EvaluateSummary) -> None:
    """Draw how typical the images are, and ROC and calibration of a probe of two classes."""
    from medvq.prior.typicality import TypicalityCheck
    from medvq.report.probe_figures import draw_evaluation

    check = TypicalityCheck.read(context.inputs["prior"].folder)
    ingest = context.inputs["ingest"].folder
    draw_evaluation(context.folder, summary, ingest, check, context.figures)


def table(summary: EvaluateSummary) -> list[str]:
    """Return the lines for people."""
    from medvq.report.tables import evaluate_table

    return evaluate_table(summary)


EVALUATE = Stage(
    name="evaluate",
    help="judge a fitted probe (--probe) on another data set, with nothing fitted anew",
    settings=lambda config: config.probe.model_dump(mode="json"),
    run=run,
    summary=EvaluateSummary,
    table=table,
    draw=draw,
    prepare=prepare,
)
