"""The README's table: every feature set at 1 to 100% of the labels, or on the official label draws
where the configuration asks for those.

Of two classes also, at 5%: how calibrated, which subgroups, and what is found where labels mean
nothing; and of the Kermany set a second target, bacterial or viral pneumonia.

Writes ``docs/RESULTS.md`` and ``docs/label_efficiency.png`` for the configuration ``kermany``, and
files of their own for any other. What was done is not done again: every probe is an artifact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from medvq.config import Config
from medvq.datasets.manifest import read_manifest
from medvq.flow import Options, made_from, run
from medvq.report.figures import draw_label_efficiency
from medvq.storage.artifacts import Artifact, find

from benchmarks.command_line import arguments, configuration, provenance, run_study
from benchmarks.other_labels import probe_shuffled, probe_subtypes
from benchmarks.subgroups import FEATURES, judge, subgroups
from benchmarks.tables import interval, table_row

FRACTIONS = (0.01, 0.02, 0.05, 0.10, 0.25, 0.50, 1.0)
FEW = 0.05
NAMES = {"auroc": "AUROC", "accuracy": "Accuracy", "r2": "R^2"}
METRICS = {
    "auroc": (
        "balanced_accuracy",
        "sensitivity",
        "specificity",
        "sensitivity_at_90_specificity",
        "sensitivity_at_95_specificity",
        "brier",
        "ece",
    ),
    "accuracy": ("balanced_accuracy", "auroc", "auprc", "brier", "ece"),
    "r2": ("mae",),
}
DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    """Run the study and write its page."""
    parsed, options = arguments(main.__doc__ or "")
    given = configuration(parsed).probe
    # Before anything is written: the pages themselves would make the commit a dirty one.
    made_on = provenance(configuration(parsed))
    official = given.draws == "official"
    configs = [
        configuration(parsed, f"probe.label_fraction={fraction}")
        for fraction in ((given.label_fraction,) if official else FRACTIONS)
    ]
    results = [run("probe", config, options) for config in configs]
    config = configs[-1]
    name = "" if config.name == "kermany" else f"-{config.name}"
    page = DOCS / f"RESULTS{name}.md"
    picture = DOCS / f"label_efficiency{name}.png"
    if len(results) > 1:
        draw_label_efficiency({r["label_fraction"]: r for r in results}, picture)
    lines = _page(results, config.name, made_on, picture.name)
    if results[0].get("headline", "auroc") == "auroc" and not official:
        lines += _trust(configs, results, options)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(page)


def _training(result: dict[str, Any]) -> str:
    """One line on what trained the model that a probe stands on."""
    made = made_from(_extract(result), "pretrain").record
    return (
        f"The model was trained in {made['seconds'] / 60:.1f} min on {made['device']} "
        f"({made['machine']}), commit `{made['commit']}`."
    )


def _extract(result: dict[str, Any]) -> Artifact:
    """The feature store that a probe stands on."""
    probe = find(Path(result["artifact"]))
    assert probe is not None
    return made_from(probe, "extract")


def _page(results: list[dict[str, Any]], name: str, made_on: str, picture: str) -> list[str]:
    headline = results[0].get("headline", "auroc")
    lines = [
        f"# Results: {name}",
        "",
        f"Made by `make benchmark DATASET={name}`. {made_on} {_training(results[0])}",
        "",
        "Test split, read once per row; mean over label draws "
        f"({results[0]['repeats']}; at 100% there is only one) with the 95% interval of a "
        "bootstrap over test subjects crossed with draws.",
        "",
        *([f"![label efficiency]({picture})", ""] if len(results) > 1 else []),
        f"## {NAMES[headline]}",
        "",
        *_by_fraction(results, headline),
    ]
    for result in results:
        metrics = METRICS[headline]
        lines += [
            "",
            f"## At {100 * result['label_fraction']:g}% of the labels",
            "",
            table_row("features", [*metrics, "validation clean", "swapped", "score"]),
            table_row("---", ["---"] * (len(metrics) + 3)),
        ]
        for row in result["rows"]:
            chosen = row["validation"]
            validation = [
                "" if chosen[k] is None else f"{chosen[k]:.3f}"
                for k in ("clean", "swapped", "score")
            ]
            lines.append(
                table_row(row["features"], [interval(row[m]) for m in metrics] + validation)
            )
    return lines


def _by_fraction(results: list[dict[str, Any]], headline: str) -> list[str]:
    """The headline metric of every feature set, and MedVQ's lead, one column per fraction."""
    percent = [f"{100 * r['label_fraction']:g}%" for r in results]
    counted = [f"{p} ({r['labels']} images)" for p, r in zip(percent, results, strict=True)]
    names = [row["features"] for row in results[0]["rows"]]
    paired = "of MedVQ less that of a baseline, on the same draws and subjects:"
    return [
        table_row("features", counted),
        table_row("---", ["---"] * len(results)),
        *(table_row(n, [interval(_of(r, n)[headline]) for r in results]) for n in names),
        "",
        f"{NAMES[headline]} {paired}",
        "",
        table_row("against", percent),
        table_row("---", ["---"] * len(results)),
        *(
            table_row(n, [interval(r["medvq_minus"][n], sign="+") for r in results])
            for n in results[0]["medvq_minus"]
        ),
    ]


def _trust(configs: list[Config], results: list[dict[str, Any]], options: Options) -> list[str]:
    few = next(n for n, config in enumerate(configs) if config.probe.label_fraction == FEW)
    extract = _extract(results[few])
    ingest = made_from(extract, "ingest")
    manifest = read_manifest(ingest.folder / "manifest.csv")
    lines = _calibration(results)
    lines += _subgroups(configs[few], results[few], ingest, manifest)
    if configs[few].source.kind == "kermany":
        subtype = [probe_subtypes(extract, manifest, config, options) for config in configs]
        lines += [
            "",
            "## A second target: bacterial or viral pneumonia",
            "",
            "The same model and features, never told of either; normal images take no part. AUROC:",
            "",
            *_by_fraction(subtype, "auroc"),
        ]
    return lines + _permutation(probe_shuffled(extract, configs[few], options))


def _calibration(results: list[dict[str, Any]]) -> list[str]:
    metrics = ("ece", "ece_prior_shift", "brier", "brier_prior_shift", "prevalence_prior_shift")
    return [
        "",
        "## MedVQ's calibration, and what correcting for the prevalence does to it",
        "",
        "`prior_shift`: the prevalence of the test images is estimated from all of them together, "
        "without their labels, and the probabilities are carried to it (Saerens et al. 2002). That "
        "is transductive: a single image cannot be corrected so, and no other figure here is.",
        "",
        table_row("labels", [*metrics]),
        table_row("---", ["---"] * len(metrics)),
        *(
            table_row(
                f"{100 * r['label_fraction']:g}%",
                [interval(_of(r, "medvq")[metric]) for metric in metrics],
            )
            for r in results
        ),
    ]


def _subgroups(
    config: Config, result: dict[str, Any], ingest: Artifact, manifest: pd.DataFrame
) -> list[str]:
    predictions = pd.read_parquet(Path(result["artifact"]) / "predictions.parquet")
    test = predictions.query("features == 'medvq' and draw == 0")
    clusters = pd.read_csv(ingest.folder / "clusters.csv")
    groups = subgroups(test, manifest, clusters)
    judged = judge(predictions, groups, config.probe.bootstrap, config.seed)
    metrics = ("balanced_accuracy", "sensitivity", "specificity")
    return [
        "",
        f"## Subgroups of the test split, at {100 * FEW:g}% of the labels",
        "",
        "The same probes as above, judged on part of the images each. Clusters of acquisition are "
        "those of the audit, found without labels; those with fewer than ten images of a class are "
        "left out.",
        "",
        table_row(
            "subgroup",
            ["images", *(f"AUROC of {f}" for f in FEATURES), *(f"medvq: {m}" for m in metrics)],
        ),
        table_row("---", ["---"] * (1 + len(FEATURES) + len(metrics))),
        *(
            table_row(
                name,
                [
                    str(found["images"]),
                    *(interval(found[f]["auroc"]) for f in FEATURES),
                    *(interval(found["medvq"][m]) for m in metrics),
                ],
            )
            for name, found in judged.items()
        ),
    ]


def _permutation(shuffled: dict[str, Any]) -> list[str]:
    return [
        "",
        "## Permutation check",
        "",
        "The same probe after the label of every subject, of all splits, was dealt to another: "
        f"AUROC at {100 * FEW:g}% of the labels. There is nothing to find, so that an interval "
        "without .50 would tell of a leak (a subject of two splits has one label in both), or of "
        "chance once in twenty rows.",
        "",
        table_row("features", ["AUROC", "holds .50"]),
        table_row("---", ["---", "---"]),
        *(
            table_row(row["features"], [interval(row["auroc"]), _holds(row["auroc"])])
            for row in shuffled["rows"]
        ),
    ]


def _holds(value: dict[str, Any]) -> str:
    low, high = value["ci95"]
    return "yes" if low <= 0.5 <= high else "**no**"


def _of(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in result["rows"] if row["features"] == name)


if __name__ == "__main__":
    run_study(main)
