"""A configuration and summaries of stages, as tracking reports them."""

from __future__ import annotations

from medvq.config import Config, PhantomSource, ProbeConfig
from medvq.summaries import (
    AuditHeadline,
    CodebookUse,
    IngestSummary,
    Interval,
    PretrainSummary,
    ProbeRow,
    ProbeSummary,
    SplitCount,
    Validation,
)

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
