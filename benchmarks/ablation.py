"""What each part of the recipe gives.

Every variant is the same training with one part taken out, see :mod:`benchmarks.variants`. Writes
``docs/ABLATION-<data set>.md``. What was trained is not trained again: every variant's features are
an artifact, which ``make extract-features SET=...`` with its setting makes, too.
"""

from __future__ import annotations

from pathlib import Path

from medvq.config import Config

from benchmarks.command_line import arguments, configuration, provenance, run_study
from benchmarks.variants import PAIRED, Found, judged, tables

DOCS = Path(__file__).parent.parent / "docs"
WITHOUT = {
    "the agreement of two views": "pretrain.contrast.weight=0",
    "reconstruction": "pretrain.reconstruction=0",
    "acquisition-swapped second views": "pretrain.contrast.swapped_share=0",
    "second views of another image of the patient": "pretrain.contrast.same_subject_share=0",
    "who those patients are": "pretrain.contrast.strangers=true",
    "the codebook": "pretrain.bypass_codebook=true",
    "the probe's random versions": "extract.versions=0",
}
"""What is taken out, and the setting that takes it out."""


def main() -> None:
    """Run the study and write its page."""
    parsed, options = arguments(main.__doc__ or "")
    config = configuration(parsed)
    made_on = provenance(config)
    variants = {"nothing": judged(parsed, options)}
    variants |= {part: judged(parsed, options, setting) for part, setting in WITHOUT.items()}
    page = DOCS / f"ABLATION-{config.name}.md"
    page.write_text("\n".join(_page(variants, config, made_on)) + "\n", encoding="utf-8")
    print(page)


def _page(variants: dict[str, Found], config: Config, made_on: str) -> list[str]:
    return [
        f"# What each part gives: {config.name}",
        "",
        f"Made by `make benchmark-ablation DATASET={config.name}`. {made_on}",
        "",
        PAIRED,
        "",
        "Without who the patients are, the second view is of another image as often, but of a "
        "stranger who has several images, too: what that still gains was learnt from who has "
        "several.",
        "",
        "Without the codebook the decoder is given the latent as it is, and the codebook follows "
        "the encoder as k-means would.",
        *tables("taken out", variants, config),
    ]


if __name__ == "__main__":
    run_study(main)
