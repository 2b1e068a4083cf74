"""What each part of the method gives: the same trainings with one part changed, paired.

Every variant is trained from the same seeds, and judged by the same probe on the same label subsets
and test images. Writes ``docs/results/ablation-<data set>.md``; ``--only GROUP`` a page of that
group alone. What was trained is not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
from medvq.config import Config
from medvq.errors import UserError

from benchmarks.page import Figure, Section, interval, table
from benchmarks.paired import Judged, judge_trainings
from benchmarks.study import Study, run_study

TRAININGS = 5
FRACTIONS = (0.01, 0.05)
"""Shares of the training subjects whose labels the probe may see."""
FEATURES = {
    "medvq": "MedVQ's features",
    "quantized": "codes alone, each as its codebook vector, pooled to the grid",
    "histogram": "codes alone, one histogram of them",
}
BASELINES = {"raw_pixels": "raw pixels", "hog": "HOG", "untrained_encoder": "untrained encoder"}
IMAGE_FRACTIONS = (0.3, 0.1)
"""Shares of the training subjects whose images are pretrained on, beside all of them."""
PARTS = {
    "no contrastive loss": ("pretrain.contrast.weight=0",),
    "no reconstruction": ("pretrain.reconstruction=0",),
    "no acquisition-swapped second views": ("pretrain.contrast.swapped_share=0",),
    "no second views of another image of the subject": ("pretrain.contrast.same_subject_share=0",),
    "second views of a stranger's image": ("pretrain.contrast.strangers=true",),
    "no codebook": ("pretrain.bypass_codebook=true",),
    "no random versions for the probe": ("extract.versions=0",),
}
PREPARATION = {
    "no alignment": ("ingest.alignment.enabled=false",),
    "no acquisition swaps": ("ingest.swap.enabled=false",),
}
UNTRAINED = (
    ((16, 64, 128, 256), 2, 4),
    ((64, 128), 0, 4),
    ((64, 128), 0, 8),
    ((128, 256), 0, 4),
    ((32, 64, 128), 0, 4),
    ((32, 64, 128), 0, 8),
    ((64, 128, 256), 0, 4),
)
"""Widths, levels with residual blocks, and cells along each axis that maps are averaged over."""
GROUPS = ("parts", "preparation", "images", "untrained")
Aurocs = dict[str, list[Judged]]
"""By feature set, a probe for each of :data:`FRACTIONS`."""


@dataclass(frozen=True)
class Group:
    """Variants that answer one question.

    Attributes
    ----------
    variants : by name, the settings that change the training.
    features : feature sets that are judged, by name, in words.
    reference : the feature set of the full method that each is compared with; empty: the same.
    """

    title: str
    text: str
    variants: Mapping[str, tuple[str, ...]]
    features: Mapping[str, str]
    reference: str = ""


def group_of(name: str, config: Config) -> Group:
    """Return one of :data:`GROUPS`."""
    if name == "parts":
        text = (
            "A stranger is another subject who has several images, too: what strangers still gain "
            "was learnt from who has several images. Without the codebook the decoder gets the "
            "latent as it is, and the codebook follows the encoder as k-means would."
        )
        return Group("Parts of the recipe", text, PARTS, FEATURES)
    if name == "preparation":
        text = (
            "Without alignment the whole image is used. Without acquisition swaps neither second "
            "views nor the probe's random versions are of swapped copies."
        )
        return Group("Preparation of the images", text, PREPARATION, FEATURES | BASELINES)
    if name == "images":
        text = (
            "Whole subjects, drawn at random; as many training steps for every share. The "
            "alignment's template and the donors of swapped copies are of all training images."
        )
        shares = {f"{s:.0%} of the images": fewer_images(config, s) for s in IMAGE_FRACTIONS}
        return Group("Unlabelled images", text, shares, FEATURES)
    text = (
        "Encoders with random weights, by their widths and the grid that the two deepest maps are "
        "averaged to, beside MedVQ's features. The best on the test split is chosen on the test "
        "split, which flatters it."
    )
    shapes = dict(untrained(*shape) for shape in UNTRAINED)
    words = {"untrained_encoder": "the two deepest maps"}
    return Group("Untrained encoders", text, shapes, words, reference="medvq")


def untrained(
    widths: tuple[int, ...], residual_levels: int, grid: int
) -> tuple[str, tuple[str, ...]]:
    """Return the name and settings of a variant whose baseline ``untrained_encoder`` is so shaped.

    That baseline has the shape of the trained network, which is here trained for one epoch.
    """
    blocks = f", residual blocks on {residual_levels} levels" if residual_levels else ""
    return f"widths {', '.join(map(str, widths))}{blocks}, grid {grid}x{grid}", (
        f"pretrain.widths={list(widths)}",
        "pretrain.decoder_widths=null",
        f"pretrain.residual_levels={residual_levels}",
        "pretrain.contrast.weight=0",
        "pretrain.epochs=1",
        f"extract.grid={grid}",
    )


def fewer_images(config: Config, share: float) -> tuple[str, ...]:
    """Return the settings of fewer images and as many steps.

    Raises
    ------
    UserError
        The configuration leaves the number of epochs open.
    """
    if config.pretrain.epochs is None:
        raise UserError("benchmark-ablation needs a number of epochs: set SET=pretrain.epochs=40")
    return (
        f"pretrain.image_fraction={share}",
        f"pretrain.epochs={round(config.pretrain.epochs / share)}",
        f"pretrain.patience={round(config.pretrain.patience / share)}",
    )


def main(study: Study, parsed: argparse.Namespace) -> None:
    """Change one part of the method at a time, and judge what is lost."""
    names = (parsed.only,) if parsed.only else GROUPS
    # All settings before the first training, so that what is refused is refused at once.
    groups = [group_of(name, study.config()) for name in names]
    full = judge_variant(study, parsed.seeds)
    sections: list[Section] = []
    figures: list[Figure] = []
    for group in groups:
        judged = {
            name: judge_variant(study, parsed.seeds, *own) for name, own in group.variants.items()
        }
        text = group.text
        for features in (name for name in group.features if name in full):
            reference = full[group.reference or features]
            variants = {name: variant[features] for name, variant in judged.items()}
            title = f"{group.title}: {group.features[features]}"
            sections.append(Section(title, compare(reference, variants), text))
            for name, one in variants.items():
                lead = reference[-1].minus(one[-1], "auroc").mean
                figures.append(Figure(f"{features}: lead over {name}", lead))
            text = ""
    trainings = f"{parsed.seeds} trainings" if parsed.seeds > 1 else "one training"
    introduction = (
        f"AUROC on the test split, mean over the same label subsets and {trainings} of each. In "
        "brackets what the full method gains over the row, paired over trainings, label subsets "
        "and test subjects, with its 95% interval: where that holds zero, nothing was gained that "
        "could be told from chance."
    )
    if parsed.seeds == 1:
        introduction += " Chance in training is in no interval."
    if parsed.only:
        study = replace(study, name=f"{study.name}-{parsed.only}")
    variables = {"ONLY": parsed.only, "SEEDS": parsed.seeds}
    target = " ".join([study.target, *(f"{k}={v}" for k, v in variables.items() if v)])
    study = replace(study, target=target)
    study.publish("What each part gives", introduction, sections, figures)


def judge_variant(study: Study, trainings: int, *settings: str) -> Aurocs:
    """Train, extract and probe with ``settings``, where that is not up to date, and judge it."""
    shares = [study.config(f"probe.label_fraction={share}", *settings) for share in FRACTIONS]
    seeds = range(shares[0].seed, shares[0].seed + trainings)
    probes = [[study.probe_of_training(config, seed) for seed in seeds] for config in shares]
    summary = probes[0][0].summary
    if summary.headline != "auroc":
        raise UserError("benchmark-ablation is for data sets of two classes")
    return {
        row.features: [
            judge_trainings([one.label_subsets(row.features) for one in of_share], config)
            for of_share, config in zip(probes, shares, strict=True)
        ]
        for row in summary.rows
    }


def compare(reference: list[Judged], variants: Mapping[str, list[Judged]]) -> pd.DataFrame:
    """Return a table with a row for each variant, paired with the full method."""
    rows = [["the full method", *(f"{one.interval('auroc').mean:.3f}" for one in reference)]]
    for name, judged in variants.items():
        cells = [
            f"{one.interval('auroc').mean:.3f} ({interval(full.minus(one, 'auroc'), '+')})"
            for full, one in zip(reference, judged, strict=True)
        ]
        rows.append([name, *cells])
    return table(["variant", *(f"{share:.0%} of the labels" for share in FRACTIONS)], rows)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=TRAININGS, help="trainings of each variant")


if __name__ == "__main__":
    run_study("ablation", "benchmark-ablation", main, GROUPS, _add_options)
