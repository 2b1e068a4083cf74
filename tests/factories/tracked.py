"""A configuration and summaries of stages, as tracking reports them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from factories.artifacts import record
from medvq.config import Config, PhantomSource, ProbeConfig
from medvq.method.encodings import BlockScaler, NormScaler
from medvq.storage.artifacts import Artifact
from medvq.storage.encoded_features import FeatureColumns
from medvq.storage.probe_file import save_probe
from medvq.storage.tracking import Tracking
from medvq.summaries import (
    AuditHeadline,
    CodebookUse,
    IngestSummary,
    Interval,
    PretrainSummary,
    ProbeRow,
    ProbeSummary,
    SplitCount,
    Summary,
    Validation,
)
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

CONFIG = Config(
    name="tiny",
    seed=7,
    source=PhantomSource(kind="phantom"),
    probe=ProbeConfig(label_fraction=0.05, repeats=3),
)
METRICS = ("auroc", "accuracy", "ece")
FEATURE_SETS = ("medvq", "raw_pixels", "hog")
INGEST = IngestSummary(
    images=12,
    subjects=9,
    splits={"train": SplitCount(8, 6, {"normal": 5, "COVID-19 (severe, 50%)": 3})},
    listed=12,
    quarantined=0,
    skipped={},
    duplicates=0,
    not_aligned=0,
    unlabelled=0,
    labelled_subjects=9,
    labelled_test_subjects=0,
    set_aside={},
)
PRETRAIN = PretrainSummary(
    epochs=2,
    best_epoch=2,
    images_per_second=10.0,
    val_mse=0.25,
    val_psnr_db=20.0,
    val_ssim=0.5,
    bits_per_position=0.1,
    entropy_bits_per_position=0.1,
    codebook=[CodebookUse(16, 12, 9.5)],
)


def row(features: str, auroc: float) -> ProbeRow:
    metric = Interval(auroc, 0.01, (auroc - 0.05, auroc + 0.04))
    return ProbeRow(features, dict.fromkeys(METRICS, metric), Validation(0.8, 0.6, 0.75))


# Fewer labels than label subsets, as a small fraction of a small data set gives.
PROBE = ProbeSummary(
    label_fraction=0.05,
    labels=2,
    subjects=2,
    repeats=3,
    rows=[row(name, 0.9 - n / 10) for n, name in enumerate(FEATURE_SETS)],
    medvq_minus={},
    classes=["normal", "ill"],
    threshold=0.5,
    task="binary",
    headline="auroc",
    audit=AuditHeadline(None, {}, 3),
)


def probe_of(fraction: float, labels: int, best: float) -> ProbeSummary:
    """What a probe on other labels found; the only feature set of MedVQ's has its row again."""
    rows = [row(name, best - n / 7) for n, name in enumerate((*FEATURE_SETS, "embedding"))]
    rows[3] = replace(rows[0], features="embedding")
    minus = {name: Interval(n / 7, 0.02, (0.0, 0.3)) for n, name in enumerate(FEATURE_SETS) if n}
    return replace(PROBE, label_fraction=fraction, labels=labels, rows=rows, medvq_minus=minus)


def features() -> pd.DataFrame:
    """Features as the feature store has them: an array in every cell."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({"embedding": list(rng.normal(size=(20, 3)).astype(np.float32))})


def fitted() -> Pipeline:
    """A probe that reads :func:`features`."""
    steps = FeatureColumns(["embedding"]), BlockScaler([3]), PCA(2, random_state=0), NormScaler()
    return make_pipeline(*steps, LogisticRegression()).fit(features(), np.arange(20) % 2)


def track(
    artifacts: Path, stage: str, summary: Summary, inputs: dict[str, Artifact], number: int = 0
) -> Artifact:
    """Track a run of a stage as the flow does; its folder holds the files that are sent."""
    fingerprint = f"{number:016x}"
    folder = artifacts / "tiny" / stage / fingerprint
    (folder / "figures").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "figures" / "roc_and_calibration.png")
    (folder / "metrics.json").write_text(json.dumps(summary.to_json()))
    config = CONFIG
    if isinstance(summary, ProbeSummary):
        save_probe(fitted(), folder)
        chosen = config.probe.model_copy(update={"label_fraction": summary.label_fraction})
        config = config.model_copy(update={"probe": chosen})
    settings = getattr(config, stage).model_dump(mode="json")
    with Tracking(artifacts, folder, config, stage, fingerprint, inputs, "abc123") as tracking:
        label = f"medvq {100 * config.probe.label_fraction:g}%" if stage == "probe" else ""
        tracking.start(label, settings | {"seed": config.seed})
        for step in range(3):
            tracking.report({"auroc": 0.5 + step / 10, "loss": 3.0 - step}, step)
        tracking.finish(summary.runs(), folder)
    tracking.settle(folder)
    made = record(
        stage, fingerprint, mlflow_run_id=tracking.run_id, settings=settings,
        inputs={name: artifact.fingerprint for name, artifact in inputs.items()},
    )  # fmt: skip
    return Artifact(folder, made)
