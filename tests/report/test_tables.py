"""The short tables for people: each number stands where it belongs."""

from typing import Any

import pytest
from medvq.report.tables import (
    evaluate_table,
    extract_table,
    ingest_table,
    pretrain_table,
    probe_table,
)
from medvq.summaries import (
    AuditHeadline,
    CodebookUse,
    EvaluateSummary,
    ExtractSummary,
    IngestSummary,
    Interval,
    PretrainSummary,
    ProbeRow,
    ProbeSummary,
    Shortcut,
    SplitCount,
    TypicalityFigures,
    Validation,
)

COLUMNS = ["auroc", "balanced_accuracy", "sensitivity", "specificity", "ece"]


def ingested(train: dict[str, int], test: dict[str, int]) -> list[str]:
    return ingest_table(
        IngestSummary(
            images=100,
            subjects=52,
            splits={
                "train": SplitCount(80, 41, train),
                "test": SplitCount(20, 11, test),
            },
            listed=105,
            quarantined=3,
            skipped={"no image (.txt)": 2},
            duplicates=5,
            not_aligned=7,
            unlabelled=4,
            labelled_subjects=52,
            labelled_test_subjects=16,
            set_aside={"the file is empty": 3},
            audit=AuditHeadline(None, {"": None}, 0),
        )
    )


def test_ingest_counts_images_subjects_and_labels() -> None:
    train, test, files, aside, skipped, rest, few = ingested(
        {"normal": 30, "ill": 50}, {"normal": 9, "ill": 11}
    )
    assert " ".join(train.split()) == "train 80 images 41 subjects normal 30, ill 50"
    assert " ".join(test.split()) == "test 20 images 11 subjects normal 9, ill 11"
    assert files == "  105 listed = 100 read + 3 set aside + 2 skipped"
    assert aside == "    set aside: 3 x the file is empty"
    assert skipped == "    skipped: 2 x no image (.txt)"
    assert rest == "  4 images without a label, 5 files with a duplicate, 7 not aligned"
    # 1.96 sqrt(.8 .2 / 16)
    assert few.endswith(
        "16 of them in test: an accuracy of 80% would have a 95% interval of about +-20 points; "
        "SET=probe.evaluate=cross_validation judges on all labelled images instead"
    )


def test_of_numbers_no_accuracy_is_foretold() -> None:
    assert "16 of them in test: intervals will be wide; SET=" in ingested({}, {})[-1]


def test_every_table_ends_with_the_audit() -> None:
    shortcut = Shortcut("frame", "the frame around the object", 0.9794)
    audit = AuditHeadline(shortcut, {"ill": 0.6564, "normal": 0.9219, "rare": None}, 6)
    assert extract_table(ExtractSummary(3, 1.0, {}, audit=audit))[1:] == [
        "  audit: the frame around the object alone predicts the label at AUROC 0.979 "
        "(cross-validated on train)",
        "  audit: test images told from training images at AUROC ill 0.656, normal 0.922 "
        "(chance: 0.5)",
        "  audit: 6 warnings, explained in audit.html of the ingest artifact",
    ]


def test_pretrain_shows_errors_and_codes() -> None:
    book = CodebookUse(size=16, used=12, perplexity=9.6)
    summary = PretrainSummary(14, 9, 210.5, 0.1234, 27.04, 0.8765, 0.1, 0.1, [book])
    assert pretrain_table(summary) == [
        "  14 epochs, 210.5 images/s; validation: MSE 0.123 of the variance, PSNR 27.0 dB, "
        "SSIM 0.876, 12 of 16 codes (perplexity 10)"
    ]
    untrained = PretrainSummary(0, 0, 0.0, 0.1234, 27.04, 0.8765, 0.1, 0.1, [book])
    (line,) = pretrain_table(untrained)
    assert line.startswith("  not trained (pretrain.epochs=0); validation: MSE 0.123 of the")


def test_extract_shows_widths() -> None:
    summary = ExtractSummary(99, 1500.0, {"histogram": 512, "embedding": 4096})
    assert extract_table(summary) == ["  99 images, 1500 images/s: histogram 512, embedding 4096"]


@pytest.fixture
def probed() -> list[str]:
    def row(features: str, first: float) -> ProbeRow:
        metrics = {
            name: Interval(first + n / 100, 0.01, (first - 0.1, first + 0.09))
            for n, name in enumerate(["auprc", *COLUMNS])
        }
        return ProbeRow(features, metrics, Validation(first, None, first - 0.2))

    return probe_table(
        ProbeSummary(
            label_fraction=0.05,
            labels=48,
            subjects=24,
            repeats=10,
            classes=["normal", "ill"],
            threshold=0.5,
            rows=[row("medvq", 0.8), row("hog", 0.6)],
            medvq_minus={"hog": Interval(0.2, 0.01, (-0.012, 0.345))},
            task="binary",
            headline="auroc",
        )
    )


def test_probe_shows_means_intervals_and_differences(probed: list[str]) -> None:
    labels, head, medvq, hog, gap = probed
    assert labels == (
        "  5% of the labels: 48 images of 24 subjects, 10 label subsets; mean [95% interval, given "
        "this training] on test"
    )
    assert head.split() == ["features", *COLUMNS, "validation"]
    for line, name, first in ((medvq, "medvq", 0.8), (hog, "hog", 0.6)):
        interval = f"[{first - 0.1:.2f},{first + 0.09:.2f}]"
        means = [f"{first + n / 100:.3f}" for n in range(1, 6)]
        cells = [cell for mean in means for cell in (mean, interval)]
        assert line.split() == [name, *cells, f"{first - 0.2:.3f}"]
    assert gap == "  AUROC of medvq less hog: +0.200 [-0.012, +0.345]"


def test_cross_validation_is_named_and_has_no_validation_score() -> None:
    metrics = {name: Interval(0.8, 0.01, (0.7, 0.9)) for name in COLUMNS}
    summary = ProbeSummary(
        [ProbeRow("medvq", metrics)], 1.0, 48, 24, 10, ["normal", "ill"], 0.5, {}, "binary",
        "auroc", evaluate="cross_validation", outer_folds=5,
    )  # fmt: skip
    labels, head, row = probe_table(summary)
    assert labels.endswith(
        "48 images of 24 subjects in a fit; mean [95% interval, given this training and this "
        "training set] over 10 x 5-fold cross-validation of all labelled images by subject"
    )
    assert head.split() == ["features", *COLUMNS]
    assert len(head) == len(row)


def test_columns_of_the_probe_stand_under_their_heads(probed: list[str]) -> None:
    _, head, medvq, _, _ = probed
    assert len(head) == len(medvq)
    start = head.index("auroc") + len("auroc")
    assert medvq[:start].endswith("0.810 [0.70,0.89]")


def test_columns_of_numbers_of_any_size_stand_apart() -> None:
    metrics = {
        "r2": Interval(-0.305, 0.1, (-0.6, -0.04)),
        "mae": Interval(4677.896, 1, (3651, 5903)),
    }
    summary = ProbeSummary(
        [ProbeRow("medvq", metrics)], 0.5, 54, 54, 10, [], 0.5, {}, "volume", "r2"
    )
    _, head, medvq = probe_table(summary)
    assert medvq.split() == ["medvq", "-0.305", "[-0.60,-0.04]", "4678", "[3651,5903]"]
    assert len(head) == len(medvq)


def test_of_one_label_subset_intervals_are_given_the_training_set() -> None:
    metrics = {name: Interval(0.8, 0.0, (0.7, 0.9)) for name in COLUMNS}
    shared: Any = (48, 24, 1, ["normal", "ill"], 0.5, {}, "binary", "auroc")
    summary = ProbeSummary([ProbeRow("medvq", metrics)], 1.0, *shared)
    assert probe_table(summary)[0].endswith(
        "1 label subset; mean [95% interval, given this training and this training set] on test"
    )
    one_subset = ProbeSummary([ProbeRow("medvq", metrics)], 0.05, *shared)
    assert one_subset.to_json()["intervals_given"] == ["this training", "this training set"]
    assert ProbeSummary.from_json(one_subset.to_json()) == one_subset


def test_untypical_images_of_another_set_are_counted_in_one_line() -> None:
    typicality = TypicalityFigures(
        images=300,
        flagged=17,
        share=17 / 300,
        median=5.214,
        threshold=7.0,
        reference_images=612,
        reference_share=0.0098,
        reference_median=4.871,
        expected_share_ci95=(0.0044, 0.0204),
    )
    summary = EvaluateSummary([], "0123", 300, 0, 0, 0.05, "auroc", typicality)
    assert evaluate_table(summary)[-1] == (
        "  17 of 300 images (5.7%) are unlike the training images; of 612 held back from those, "
        "1.0% are, and of others like them 0.4% to 2.0% "
        "(median score 5.21 against 4.87 bits per code)"
    )


def test_a_threshold_read_off_the_judged_images_is_named_so() -> None:
    names = ("sensitivity", "sensitivity_at_90_specificity")
    row = ProbeRow("medvq", {name: Interval(0.8, 0.0, (0.7, 0.9)) for name in names})
    typicality = TypicalityFigures(30, 0, 0.0, 5.0, 7.0, 60, 0.0, 5.0, (0.0, 0.06))
    summary = EvaluateSummary([row], "0123", 30, 30, 0, 0.05, "auroc", typicality)
    _, called, best, note, _ = evaluate_table(summary)
    assert called.split() == ["sensitivity", "0.800", "[0.700,", "0.900]"]
    assert best.startswith(
        "  sensitivity at 90 specificity (threshold read off the test images)  0.800 ["
    )
    assert note == "  95% intervals given this training and this training set"
    assert EvaluateSummary.from_json(summary.to_json()) == summary
