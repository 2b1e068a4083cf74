"""The short tables for people: each number stands where it belongs."""

from typing import Any

import pytest
from medvq.evaluation.metrics import BINARY
from medvq.report.tables import show


def result(stage: str, **found: Any) -> dict[str, Any]:
    return {"stage": stage, "dataset": "tiny", "up_to_date": False, "seconds": 12.4, **found}


def ingested(crossing: int) -> dict[str, Any]:
    return result(
        "ingest",
        splits={
            "train": {"images": 80, "subjects": 41, "labels": {"normal": 30, "ill": 50}},
            "test": {"images": 20, "subjects": 11, "labels": {"normal": 9, "ill": 11}},
        },
        quarantined=3,
        duplicates=5,
        not_aligned=7,
        subjects_in_train_and_test=crossing,
    )


def test_ingest_counts_images_subjects_and_labels() -> None:
    head, train, test, rest = show(ingested(0)).splitlines()
    assert head == "ingest of tiny: 12 s"
    assert " ".join(train.split()) == "train 80 images 41 subjects normal 30, ill 50"
    assert " ".join(test.split()) == "test 20 images 11 subjects normal 9, ill 11"
    assert rest == "  3 set aside, 5 files with a duplicate, 7 not aligned"


def test_subjects_on_both_sides_are_told() -> None:
    assert show(ingested(2)).splitlines()[-1].startswith("  2 subjects stand in train and test")


AUDIT = {
    "strongest_shortcut": {"name": "frame", "what": "the frame around the object", "auroc": 0.9794},
    "test_told_from_train": {"ill": 0.6564, "normal": 0.9219, "rare": None},
    "warnings": 6,
}


def test_what_the_data_gives_away_stands_beside_every_result() -> None:
    lines = show(result("extract", images=3, images_per_second=1, feature_sets={}, audit=AUDIT))
    assert lines.splitlines()[2:] == [
        "  audit: the frame around the object alone tells the label at AUROC 0.979 "
        "(cross-validated on train)",
        "  audit: test images are told from train at AUROC ill 0.656, normal 0.922",
        "  audit: 6 warning(s), explained in audit.html of the ingest artifact",
    ]
    nothing = {"strongest_shortcut": None, "test_told_from_train": {"": None}, "warnings": 0}
    assert "audit" not in show(ingested(0) | {"audit": nothing})


def test_what_is_up_to_date_says_so() -> None:
    assert show(ingested(0) | {"up_to_date": True}).startswith("ingest of tiny: up to date\n")


def test_pretrain_tells_errors_and_codes() -> None:
    text = show(
        result(
            "pretrain",
            epochs=14,
            images_per_second=210.5,
            val_mse=0.1234,
            val_psnr_db=27.04,
            val_ssim=0.8765,
            codebook=[{"used": 12, "size": 16, "perplexity": 9.6}],
        )
    )
    told = (
        "14 epochs, 210.5 images/s",
        "MSE 0.123 of",
        "PSNR 27.0 dB",
        "SSIM 0.876",
        "12 of 16 codes (perplexity 10)",
    )
    for piece in told:
        assert piece in text


def test_extract_tells_widths() -> None:
    text = show(
        result(
            "extract",
            images=99,
            images_per_second=1500.0,
            feature_sets={"histogram": 512, "embedding": 4096},
        )
    )
    assert text.splitlines()[1] == "  99 images, 1500 images/s: histogram 512, embedding 4096"


@pytest.fixture
def probed() -> dict[str, Any]:
    def row(features: str, first: float) -> dict[str, Any]:
        metrics = {
            name: {"mean": first + n / 100, "std": 0.01, "ci95": [first - 0.1, first + 0.09]}
            for n, name in enumerate(BINARY)
        }
        return {"features": features, **metrics, "validation": {"score": first - 0.2}}

    return result(
        "probe",
        label_fraction=0.05,
        labels=48,
        subjects=24,
        repeats=10,
        rows=[row("medvq", 0.8), row("hog", 0.6)],
        medvq_minus={"hog": {"mean": 0.2, "std": 0.01, "ci95": [-0.012, 0.345]}},
    )


def test_probe_tells_means_intervals_and_differences(probed: dict[str, Any]) -> None:
    _, drawn, head, medvq, hog, gap = show(probed).splitlines()
    assert "5% of the labels: 48 images of 24 subjects, 10 draws" in drawn
    columns = ["auroc", "balanced_accuracy", "sensitivity", "specificity", "ece"]
    assert head.split() == ["features", *columns, "validation"]
    for line, name, first in ((medvq, "medvq", 0.8), (hog, "hog", 0.6)):
        interval = f"[{first - 0.1:.2f},{first + 0.09:.2f}]"
        means = [f"{first + BINARY.index(column) / 100:.3f}" for column in columns]
        cells = [cell for mean in means for cell in (mean, interval)]
        assert line.split() == [name, *cells, f"{first - 0.2:.3f}"]
    assert gap == "  AUROC of medvq less hog: +0.200 [-0.012, +0.345]"


def test_columns_of_the_probe_stand_under_their_heads(probed: dict[str, Any]) -> None:
    _, _, head, medvq, _, _ = show(probed).splitlines()
    assert len(head) == len(medvq)
    start = head.index("auroc") + len("auroc")
    assert medvq[:start].endswith("0.800 [0.70,0.89]")


def test_what_is_untypical_of_another_set_is_one_line() -> None:
    gate = {
        "images": 300, "flagged": 17, "share": 17 / 300, "median": 5.214, "threshold": 7.0,
        "reference_images": 612, "reference_share": 0.0098, "reference_median": 4.871,
    }  # fmt: skip
    told = {"images": 300, "labelled": 0, "seen_in_training": 0, "rows": [], "typicality": gate}
    assert show(result("evaluate", **told)).splitlines()[-1] == (
        "  17 of 300 images (5.7%) are unlike the training images; of 612 held back from those, "
        "1.0% are (median surprise 5.21 against 4.87 bits per code)"
    )
