"""What each part of the recipe gives, and what more unlabelled images give.

Every variant is the same training with one part taken out, or with fewer images, probed with the
same draws of labels and judged on the same test images; gains are paired over draws and subjects.
Writes ``docs/ABLATION-<data set>.md``. What was trained is not trained again: every variant's
features are an artifact, which ``make extract-features SET=...`` with its settings makes, too.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmarks.command_line import arguments, configuration, provenance
from benchmarks.pairing import Floats, aurocs, gain
from benchmarks.tables import interval, table_row
from pipeline.config import Config
from pipeline.flow import run
from pipeline.probe.linear import Encoded, fit_probe
from pipeline.probe.stage import Images, Store, images_of, label_draws

DOCS = Path(__file__).parent.parent / "docs"
FRACTIONS = (0.01, 0.05)
WHOLE = "nothing"
WITHOUT = {
    "the agreement of two views": "pretrain.agreement.weight=0",
    "acquisition-swapped second views": "pretrain.agreement.swapped_share=0",
    "the codebook": "pretrain.bypass_codebook=true",
    "the probe's random versions": "extract.versions=0",
}
"""What is taken out, and the setting that takes it out."""
SHARES = (0.1, 1.0)
"""Of the training subjects, whose images are pretrained on."""
FEATURES = {
    "embedding": "the encoder's last level",
    "quantized": "codes alone, each as its vector, pooled to the 4x4 grid",
    "histogram": "codes alone, one histogram of them",
}
Found = dict[str, list[tuple[Floats, Floats]]]
"""By feature set, what :func:`aurocs` found at each of :data:`FRACTIONS`."""


def main() -> None:
    """Run the study and write its page."""
    parsed, options = arguments(main.__doc__ or "")
    config = configuration(parsed)
    made_on = provenance(config)

    def judged(*settings: str) -> Found:
        variant = configuration(parsed, *settings)
        return _judged(Path(run("extract", variant, options)["artifact"]), config)

    parts = {WHOLE: judged(), **{part: judged(setting) for part, setting in WITHOUT.items()}}
    shares = {f"{share:.0%}": judged(*fewer(config, share)) for share in SHARES[::-1]}
    page = DOCS / f"ABLATION-{config.name}.md"
    page.write_text("\n".join(_page(parts, shares, config, made_on)) + "\n", encoding="utf-8")
    print(page)


def fewer(config: Config, share: float) -> tuple[str, ...]:
    """Fewer images, and half the steps of the whole training whatever the share."""
    epochs = (config.pretrain.epochs or 18) // 2
    settings = {
        "image_fraction": share,
        "epochs": round(epochs / share),
        "patience": round(config.pretrain.patience / share),
    }
    return tuple(f"pretrain.{key}={value}" for key, value in settings.items())


def _judged(extract: Path, config: Config) -> Found:
    store = Store(extract)
    images = images_of(store)
    found: Found = {}
    for name in FEATURES:
        _, encoded = store.encode((name,), config.probe, config.seed, images.unlabelled_train)
        found[name] = [
            aurocs(_predictions(store.keys, images, encoded, config, fraction), config)
            for fraction in FRACTIONS
        ]
    return found


def _predictions(
    keys: pd.DataFrame, images: Images, encoded: Encoded, config: Config, fraction: float
) -> pd.DataFrame:
    """What a probe says of each test image, one after another for each draw."""
    probe = config.probe.model_copy(update={"label_fraction": fraction})
    told_of = keys.iloc[images.test][["image_id", "subject_id", "label"]]
    parts = []
    for number, drawn in enumerate(label_draws(images, probe, config.seed)):
        model = fit_probe(encoded, images.truth, images.subjects, drawn, probe).classifier
        said = images.task.predict(model, encoded.images[images.test])
        parts.append(told_of.assign(draw=number, probability=said))
    return pd.concat(parts)


def _page(
    parts: dict[str, Found], shares: dict[str, Found], config: Config, made_on: str
) -> list[str]:
    return [
        f"# What each part gives: {config.name}",
        "",
        f"Made by `make benchmark-ablation DATASET={config.name}`. {made_on}",
        "",
        "AUROC on the test split, mean over the same draws of labels. In brackets what the first "
        "row gains over the row, paired over draws and test subjects, with its 95% interval: "
        "where that holds zero, nothing was gained that could be told from chance. One training "
        "of each, so that chance in the training itself is in no interval.",
        "",
        "## One part taken out",
        "",
        "Without the codebook the decoder is given the latent as it is, and the codebook follows "
        "the encoder as k-means would.",
        *_tables("taken out", parts, config),
        "",
        "## Fewer images to pretrain on",
        "",
        "Whole subjects, drawn at random; half the steps of the whole training, as many for every "
        "share. The alignment's template and the swapped copies' donors are of all training "
        "images.",
        *_tables("images", shares, config),
    ]


def _tables(head: str, variants: dict[str, Found], config: Config) -> list[str]:
    lines = []
    for key, told_as in FEATURES.items():
        lines += [
            "",
            f"{told_as[0].upper()}{told_as[1:]}:",
            "",
            table_row(head, [f"{fraction:.0%} of the labels" for fraction in FRACTIONS]),
            table_row("---", ["---"] * len(FRACTIONS)),
        ]
        first = next(iter(variants.values()))[key]
        for name, found in variants.items():
            cells = []
            for whole, one in zip(first, found[key], strict=True):
                lead = "" if one is whole else f" ({interval(gain(whole, one, config), '+')})"
                cells.append(f"{one[0].mean():.3f}{lead}")
            lines.append(table_row(name, cells))
    return lines


if __name__ == "__main__":
    main()
