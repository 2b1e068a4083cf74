"""The stage ``evaluate``: a fitted probe judged on another data set, with nothing fitted anew.

The images are placed by the template that the probe's own training images were placed by, encoded
by the model that encoded them, and classified by the saved probe, threshold and calibration with
it. Images whose pixels the training has seen are left out and counted. The gate of the prior of the
training images (:mod:`medvq.prior.typicality`) flags what is unlike them and drops nothing.

Writes into its artifact:

======================= ========================================================================
``predictions.parquet`` one row per image: what the probe says, the truth where it is known, the
                        gate's score (``surprise``, bits per code) and what it flags (``untypical``)
``metrics.json``        the metrics over all images with a known truth, and what the gate says
======================= ========================================================================
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
import torch
from numpy.typing import NDArray

from medvq.config import Config
from medvq.datasets.manifest import read_manifest
from medvq.errors import UserError
from medvq.evaluation import metrics
from medvq.evaluation.tasks import Binary, Multiclass, Regression, Task
from medvq.prior.codes import read_codes
from medvq.prior.typicality import TypicalityCheck, surprise
from medvq.stages import EXTRACT, PRIOR
from medvq.stages.prior import PRIOR as PRIOR_FILE
from medvq.stages.prior import load_prior
from medvq.stages.probe import MEDVQ, PROBE, stored_name
from medvq.stages.stage import Ensure, RunOptions
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact, StageContext
from medvq.storage.feature_store import FEATURES, read_feature, read_keys, read_metadata

_OURS = ("medvq.method.encodings.", "medvq.stages.probe.")


def prepare(
    config: Config, options: RunOptions, ensure: Ensure
) -> tuple[Config, dict[str, Artifact]]:
    """Read, register and encode the data set of ``config`` as the probe's own images were.

    Nothing is swapped and no random version is made, since nothing is fitted on it. What is typical
    of the probe's own images is said by a prior of their codes, trained where there is none.

    Returns
    -------
    The configuration that the probe's own images were prepared with, of this data set; and the
    artifacts that :func:`evaluate` reads.
    """
    if (folder := options.probe) is None:
        raise UserError("evaluate needs --probe (PROBE=): the artifact of a fitted probe")
    if (probe := artifacts.find(folder.resolve())) is None or probe.record.stage != "probe":
        raise UserError(f"{folder} is no finished artifact of the stage 'probe'")
    extract = artifacts.source(probe, "extract")
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
    given = {"ingest": {"reference": ingest}, "extract": {"pretrain": pretrain}}
    # First, since what is wrong with the new images should be told before minutes of training.
    new = ensure(EXTRACT, changed, given)
    every = trained.prior.model_copy(update={"only_class": None})
    prior = ensure(
        PRIOR,
        trained.model_copy(update={"prior": every}),
        {"prior": {"extract": extract}},
        f"what is typical of {trained.name} is learnt from its stored codes: minutes, once",
    )
    return changed, {
        "probe": probe,
        "reference": ingest,
        "prior": prior,
        "ingest": artifacts.source(new, "ingest"),
        "extract": new,
    }


def evaluate(context: StageContext) -> dict[str, Any]:
    """Run the stage; return its summary, with no rows where no truth is known.

    Raises
    ------
    UserError
        A class was unknown to the probe, or the training has seen every image.
    """
    fitted, store = context.inputs["probe"], context.inputs["extract"].folder / FEATURES
    names = fitted.record.configuration["probe"]["features"]
    task = _task(fitted.record.summary)
    keys = read_keys(store)
    new = ~keys["image_id"].isin(_seen(context.inputs["reference"].folder)).to_numpy()
    if not new.any():
        raise UserError("every image was among the training images of the probe: nothing is new")
    table = np.concatenate([read_feature(store, stored_name(name)) for name in names], axis=1)
    predicted = task.predict(load_probe(fitted.folder), table[new])
    truth = _truth(
        task, keys[new], read_metadata(store)["classes"], fitted.record.summary["classes"]
    )
    gate = TypicalityCheck.read(context.inputs["prior"].folder)
    scores = _scores(context, new)
    told = keys.loc[new, ["image_id", "subject_id"]].assign(
        **{task.truth_column: truth},
        **task.columns(predicted, fitted.record.summary["threshold"]),
        surprise=scores,
        untypical=scores > gate.threshold,
    )
    told.to_parquet(context.folder / "predictions.parquet", index=False)
    known = task.known(truth)
    summary = {
        "probe": fitted.fingerprint,
        "images": int(new.sum()),
        "labelled": int(known.sum()),
        "seen_in_training": int((~new).sum()),
        "label_fraction": fitted.record.summary["label_fraction"],
        "headline": task.headline,
        "typicality": gate.judge(scores),
        "rows": [],
    }
    if len(np.unique(truth[known])) > 1:
        weights = metrics.subject_weights(
            keys.loc[new, "subject_id"].to_numpy(str)[known],
            context.config.probe.bootstrap,
            context.config.seed,
        )
        over = metrics.over_draws(
            lambda _draw, given: task.evaluate(
                truth[known], predicted[known], fitted.record.summary["threshold"], given
            ),
            1,
            weights,
        )
        one = np.ones((len(weights), 1))
        summary["rows"] = [
            {"features": MEDVQ, **{m: metrics.interval(*over[m], one) for m in task.metrics}}
        ]
    (context.folder / "metrics.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    return summary


def _scores(context: StageContext, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How untypical these images are of those that the prior was trained on, (rows,)."""
    maps = read_codes(context.inputs["extract"])
    prior = load_prior(context.inputs["prior"].folder / PRIOR_FILE, maps.codebook).to(context.device)
    return TypicalityCheck.score(surprise(prior, maps.codes[torch.from_numpy(rows)]))


def load_probe(folder: Path) -> Any:
    """The saved probe of an artifact: a scikit-learn pipeline from features to probability.

    No code is executed from the file: of other types than scikit-learn's it may hold our own
    transformers alone.

    Raises
    ------
    UserError
        The file holds anything else.
    """
    file = folder / PROBE
    types = skops.io.get_untrusted_types(file=file)
    if strange := [name for name in types if not name.startswith(_OURS)]:
        raise UserError(f"{file} holds {strange[0]}, which no probe of ours has; it is not loaded")
    return skops.io.load(file, trusted=types)


def _task(summary: dict[str, Any]) -> Task:
    if "task" not in summary:
        return Binary()
    return Multiclass() if summary["task"] == "classes" else Regression()


def _seen(reference: Path) -> NDArray[Any]:
    manifest = read_manifest(reference / "manifest.csv")
    return np.asarray(manifest.loc[manifest["split"] != "test", "image_id"])


def _truth(task: Task, keys: pd.DataFrame, here: list[str], trained: list[str]) -> NDArray[Any]:
    """The number of each image, or its class as the probe counts them; NaN or -1 where unknown.

    Classes are the same where their names are, capitals aside, or where the name here is the
    number of a class there.
    """
    if isinstance(task, Regression):
        if "target" not in keys:
            return np.full(len(keys), np.nan)
        return keys["target"].to_numpy(np.float64)
    numbers = {name.casefold(): number for number, name in enumerate(trained)}
    numbers = {str(number): number for number in range(len(trained))} | numbers
    if unknown := [name for name in here if name.casefold() not in numbers]:
        raise UserError(
            f"the probe knows the classes {', '.join(trained)}; {unknown[0]!r} is none of them: "
            "name the classes of this data set alike, or leave such labels empty"
        )
    known = np.array([numbers[name.casefold()] for name in here] + [-1])
    return np.asarray(known[keys["label"].fillna(-1).to_numpy(np.int64)])
