"""What each part of the recipe gives, and what more unlabelled images give.

Every variant is the whole flow with one part taken out, or with fewer images to pretrain on, probed
with the same draws of labels and judged on the same test images; gains are paired over draws and
subjects. Writes ``docs/ABLATION-<data set>.md``. What was done is not done again: every variant is
an artifact, and ``make linear-probe SET=...`` with its settings makes the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.command_line import arguments, configuration, provenance
from benchmarks.pairing import Floats, aurocs, gain, predictions_of, told
from pipeline.config import Config
from pipeline.flow import run

DOCS = Path(__file__).parent.parent / "docs"
FRACTIONS = (0.01, 0.05, 1.0)
WHOLE = "nothing"
WITHOUT = {
    "the agreement of two views": "pretrain.agreement.weight=0",
    "acquisition-swapped second views": "pretrain.agreement.swapped_share=0",
    "reconstruction": "pretrain.reconstruction=0",
    "the codebook": "pretrain.bypass_codebook=true",
    "the alignment": "ingest.alignment.enabled=false",
    "the probe's random versions": "extract.versions=0",
}
"""What is taken out, and the setting that takes it out."""
SHARES = (0.1, 0.3)
"""Of the training subjects, what is pretrained on beside all of them."""
FEATURES = {
    "medvq": "MedVQ's features",
    "quantized": "codes alone, each as its vector, pooled to the 4x4 grid",
    "histogram": "codes alone, one histogram of them",
}
Found = dict[str, tuple[Floats, Floats]]
"""By feature set, what :func:`aurocs` found."""


def main() -> None:
    """Run the study and write its page."""
    parsed, options = arguments(main.__doc__ or "")
    config = configuration(parsed)
    made_on = provenance(config)
    variants = {WHOLE: (), **{part: (setting,) for part, setting in WITHOUT.items()}}
    variants |= {_name(share): smaller(config, share) for share in SHARES}
    found: dict[str, list[Found]] = {}
    for name, settings in variants.items():
        results = [
            run("probe", configuration(parsed, *settings, f"probe.label_fraction={f}"), options)
            for f in FRACTIONS
        ]
        tables = [predictions_of(result["artifact"]) for result in results]
        found[name] = [
            {key: aurocs(table[table["features"] == key], config) for key in FEATURES}
            for table in tables
        ]
    page = DOCS / f"ABLATION-{config.name}.md"
    page.write_text("\n".join(_page(found, config, made_on)) + "\n", encoding="utf-8")
    print(page)


def _name(share: float) -> str:
    return f"{1 - share:.0%} of the images to pretrain on"


def smaller(config: Config, share: float) -> tuple[str, ...]:
    """Fewer images, as many steps, and as many until training stops for want of progress."""
    settings = [
        f"pretrain.image_fraction={share}",
        f"pretrain.patience={_scaled(config.pretrain.patience, share)}",
    ]
    return (*settings, f"pretrain.epochs={_scaled(config.pretrain.epochs or 18, share)}")


def _scaled(epochs: int, share: float) -> int:
    return round(epochs / share)


def _page(found: dict[str, list[Found]], config: Config, made_on: str) -> list[str]:
    lines = [
        f"# What each part gives: {config.name}",
        "",
        f"Made by `make benchmark-ablation DATASET={config.name}`. {made_on}",
        "",
        "AUROC on the test split, mean over the same draws of labels. In brackets what the whole "
        "recipe gains over the row, paired over draws and test subjects, with its 95% interval: "
        "where that holds zero, nothing was gained that could be told from chance. One training "
        "of each, so that chance in the training itself is in no interval.",
        "",
        "Taken out is one part at a time. Without the codebook the decoder is given the latent as "
        "it is, and the codebook follows the encoder as k-means would; with fewer images (whole "
        "subjects, drawn at random) there are as many steps. The alignment's template and the "
        "swapped copies' donors are of all training images everywhere.",
    ]
    for key, told_as in FEATURES.items():
        lines += [
            "",
            f"## {told_as[0].upper()}{told_as[1:]}",
            "",
            _row("taken out", [f"{fraction:.0%} of the labels" for fraction in FRACTIONS]),
            _row("---", ["---"] * len(FRACTIONS)),
        ]
        for name, by_fraction in found.items():
            cells = []
            for whole, one in zip(found[WHOLE], by_fraction, strict=True):
                lead = "" if name == WHOLE else f" ({told(gain(whole[key], one[key], config))})"
                cells.append(f"{one[key][0].mean():.3f}{lead}")
            lines.append(_row(name, cells))
    return lines


def _row(head: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join([head, *cells]) + " |"


if __name__ == "__main__":
    main()
