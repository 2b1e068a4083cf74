"""What each part of the method gives: the same training with one part changed, paired.

Every variant is judged by the same probe on the same label subsets and test images. Writes
``docs/results/ablation-<data set>.md`` (with ``--only GROUP`` a page of that group alone). What was
trained is not trained again: every variant is an artifact, which ``make linear-probe SET=...`` with
its settings makes, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from medvq.config import Config
from medvq.errors import UserError

from benchmarks.page import Section, interval, table
from benchmarks.paired import Judged, judge
from benchmarks.study import Study, run_study

FRACTIONS = (0.01, 0.05)
"""Shares of the training subjects whose labels the probe may see."""
FEATURES = {
    "medvq": "MedVQ's features",
    "quantized": "codes alone, each as its codebook vector, pooled to the grid",
    "histogram": "codes alone, one histogram of them",
}
UNTRAINED = {"untrained_encoder": "untrained encoders, and MedVQ's features"}
BASELINES = {"raw_pixels": "raw pixels", "hog": "HOG", "untrained_encoder": "untrained encoder"}
IMAGE_FRACTIONS = (0.3, 0.1)
"""Shares of the training subjects whose images are pretrained on, beside all of them."""


@dataclass(frozen=True)
class Variant:
    """A changed training.

    Attributes
    ----------
    name : what is changed, in words.
    settings : of the configuration, that change it.
    """

    name: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Variants of one question.

    Attributes
    ----------
    text : what a reader must know of them.
    features : feature sets that are judged, by name, in words; of the variants alone where the full
        method stands beside them with its own features.
    """

    title: str
    text: str
    variants: tuple[Variant, ...]
    features: dict[str, str]


def groups(config: Config) -> dict[str, Group]:
    """Return the variants of a data set by the question that they answer."""
    return {
        "parts": Group("Parts of the recipe", _PARTS_TEXT, PARTS, FEATURES),
        "alignment": Group(
            "Alignment",
            "Without it the whole image is used.",
            (Variant("no alignment", ("ingest.alignment.enabled=false",)),),
            FEATURES | BASELINES,
        ),
        "images": Group(
            "Unlabelled images",
            "Whole subjects, drawn at random; as many training steps for every share. The "
            "alignment's template and the donors of swapped copies are of all training images.",
            tuple(
                Variant(f"{share:.0%} of the images", fewer_images(config, share))
                for share in IMAGE_FRACTIONS
            ),
            FEATURES,
        ),
        "untrained": Group(
            "Untrained encoders",
            "Encoders with random weights, by their widths and the grid that the two deepest maps "
            "are averaged to. The first row is MedVQ as it is.",
            tuple(untrained(widths, blocks, grid) for widths, blocks, grid in UNTRAINED_ENCODERS),
            UNTRAINED,
        ),
    }


PARTS = (
    Variant("no contrastive loss", ("pretrain.contrast.weight=0",)),
    Variant("no reconstruction", ("pretrain.reconstruction=0",)),
    Variant("no acquisition-swapped second views", ("pretrain.contrast.swapped_share=0",)),
    Variant(
        "no second views of another image of the subject",
        ("pretrain.contrast.same_subject_share=0",),
    ),
    Variant("second views of a stranger's image", ("pretrain.contrast.strangers=true",)),
    Variant("no codebook", ("pretrain.bypass_codebook=true",)),
    Variant("no random versions for the probe", ("extract.versions=0",)),
)
_PARTS_TEXT = (
    "A stranger is another subject who has several images, too: what is still gained with strangers "
    "was learnt from who has several images. Without the codebook the decoder gets the latent as "
    "it is, and the codebook follows the encoder as k-means would."
)
UNTRAINED_ENCODERS = (
    ((16, 64, 128, 256), 2, 4),
    ((64, 128), 0, 4),
    ((64, 128), 0, 6),
    ((128, 256), 0, 4),
    ((32, 64, 128), 0, 4),
    ((32, 64, 128), 0, 6),
    ((64, 128, 256), 0, 4),
)
"""Widths, residual levels, and cells along each axis that maps are averaged over."""


def untrained(widths: Sequence[int], residual_levels: int, grid: int) -> Variant:
    """Return the variant whose baseline ``untrained_encoder`` has this shape.

    The shape of that baseline is the network's, which is trained for one epoch, because the feature
    store holds both.
    """
    blocks = f", {residual_levels} residual levels" if residual_levels else ""
    return Variant(
        f"untrained, widths {', '.join(map(str, widths))}{blocks}, grid {grid}x{grid}",
        (
            f"pretrain.widths={list(widths)}",
            "pretrain.decoder_widths=null",
            f"pretrain.residual_levels={residual_levels}",
            "pretrain.contrast.weight=0",
            "pretrain.epochs=1",
            f"extract.grid={grid}",
        ),
    )


def fewer_images(config: Config, share: float) -> tuple[str, ...]:
    """Return the settings of fewer images and as many steps.

    Raises
    ------
    UserError
        The configuration leaves the number of epochs open.
    """
    if config.pretrain.epochs is None:
        raise UserError(
            "benchmark-ablation needs a number of epochs, to train on fewer images for as many "
            "steps; set SET=pretrain.epochs=40"
        )
    settings = {
        "image_fraction": share,
        "epochs": round(config.pretrain.epochs / share),
        "patience": round(config.pretrain.patience / share),
    }
    return tuple(f"pretrain.{key}={value}" for key, value in settings.items())


Aurocs = dict[str, list[Judged]]
"""By feature set, a probe for each of :data:`FRACTIONS`."""


def main(study: Study, parsed: argparse.Namespace) -> None:
    """Change one part of the method at a time, and judge what is lost."""
    chosen = groups(study.config())
    if parsed.only:
        chosen = {parsed.only: chosen[parsed.only]}
        study = replace(study, name=f"{study.name}-{parsed.only}")
    full = judge_variant(study, Variant("the full method", ()))
    sections, metrics = [], {}
    for group in chosen.values():
        judged = {v.name: judge_variant(study, v) for v in group.variants}
        for features, words in group.features.items():
            title = f"{group.title}: {words}"
            sections.append(Section(title, compare(full, judged, features), group.text))
        metrics |= {
            f"lead over {name}": full["medvq"][-1].minus(one[features][-1], "auroc").mean
            for name, one in judged.items()
            for features in list(group.features)[:1]
        }
    study.publish("What each part gives", _INTRODUCTION, sections, metrics)


_INTRODUCTION = (
    "AUROC on the test split, mean over the same label subsets. In brackets what the full method "
    "gains over the row, paired over label subsets and test subjects, with its 95% interval: where "
    "that holds zero, nothing was gained that could be told from chance. There is one training of "
    "each, so chance in the training itself is in no interval."
)


def judge_variant(study: Study, variant: Variant) -> Aurocs:
    """Train, extract and probe a variant, where that is not up to date, and judge it."""
    probes = [
        study.probe(study.config(f"probe.label_fraction={share}", *variant.settings))
        for share in FRACTIONS
    ]
    names = [row.features for row in probes[0].summary.rows]
    return {
        name: [judge(probe.label_subsets(name), probe.config) for probe in probes]
        for name in names
    }


def compare(full: Aurocs, variants: dict[str, Aurocs], features: str) -> object:
    """Return a table with a row for each variant, paired with the full method."""
    own = full["medvq" if features in UNTRAINED and len(variants) > 1 else features]
    rows = [["the full method", *(f"{one.interval('auroc').mean:.3f}" for one in own)]]
    for name, judged in variants.items():
        cells = [
            f"{other.interval('auroc').mean:.3f} ({interval(one.minus(other, 'auroc'), '+')})"
            for one, other in zip(own, judged[features], strict=True)
        ]
        rows.append([name, *cells])
    return table(["variant", *(f"{share:.0%} of the labels" for share in FRACTIONS)], rows)


if __name__ == "__main__":
    run_study("ablation", "benchmark-ablation", main)
