"""The README's table: every feature set at 1, 5, 10 and 100% of the labels, or on the official
label draws where the configuration asks for those.

Writes ``docs/RESULTS.md`` and ``docs/label_efficiency.png`` for the configuration ``kermany``, and
files of their own for any other.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.command_line import arguments, configuration, provenance
from pipeline.flow import made_from, run
from pipeline.stage import find

FRACTIONS = (0.01, 0.05, 0.10, 1.0)
NAMES = {"auroc": "AUROC", "accuracy": "Accuracy", "r2": "R^2"}
METRICS = {
    "auroc": ("balanced_accuracy", "sensitivity", "specificity", "brier", "ece"),
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
    results = []
    for fraction in (given.label_fraction,) if given.draws == "official" else FRACTIONS:
        config = configuration(parsed, f"probe.label_fraction={fraction}")
        results.append(run("probe", config, options))
    name = "" if config.name == "kermany" else f"-{config.name}"
    page = DOCS / f"RESULTS{name}.md"
    picture = DOCS / f"label_efficiency{name}.png"
    latest = Path(results[-1]["artifact"])
    if len(results) > 1:
        # Only the last probe has seen all the others: draw once more from them all.
        _redraw(results, latest, picture)
    page.write_text(_page(results, config.name, made_on, picture.name), encoding="utf-8")
    print(page)


def _training(result: dict[str, Any]) -> str:
    """One line on what trained the model that a probe stands on."""
    probe = find(Path(result["artifact"]))
    assert probe is not None
    made = made_from(made_from(probe, "extract"), "pretrain").record
    return (
        f"The model was trained in {made['seconds'] / 60:.1f} min on {made['device']} "
        f"({made['machine']}), commit `{made['commit']}`."
    )


def _redraw(results: list[dict[str, Any]], latest: Path, picture: Path) -> None:
    from pipeline.reporting.figures import draw_label_efficiency

    draw_label_efficiency({r["label_fraction"]: r for r in results}, latest / "figures")
    shutil.copyfile(latest / "figures" / "label_efficiency.png", picture)


def _page(results: list[dict[str, Any]], name: str, made_on: str, picture: str) -> str:
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
        _row(
            "features", [f"{100 * r['label_fraction']:g}% ({r['labels']} images)" for r in results]
        ),
        _row("---", ["---"] * len(results)),
    ]
    names = [row["features"] for row in results[0]["rows"]]
    lines += [_row(n, [_interval(_of(r, n)[headline]) for r in results]) for n in names]
    paired = "of MedVQ less that of a baseline, on the same draws and subjects:"
    lines += ["", f"{NAMES[headline]} {paired}", ""]
    lines += [
        _row("against", [f"{100 * r['label_fraction']:g}%" for r in results]),
        _row("---", ["---"] * len(results)),
    ]
    lines += [
        _row(n, [_interval(r["medvq_minus"][n], sign="+") for r in results])
        for n in results[0]["medvq_minus"]
    ]
    for result in results:
        metrics = METRICS[headline]
        lines += [
            "",
            f"## At {100 * result['label_fraction']:g}% of the labels",
            "",
            _row("features", [*metrics, "validation clean", "swapped", "score"]),
            _row("---", ["---"] * (len(metrics) + 3)),
        ]
        for row in result["rows"]:
            chosen = row["validation"]
            validation = [
                "" if chosen[k] is None else f"{chosen[k]:.3f}"
                for k in ("clean", "swapped", "score")
            ]
            lines.append(_row(row["features"], [_interval(row[m]) for m in metrics] + validation))
    return "\n".join(lines) + "\n"


def _of(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in result["rows"] if row["features"] == name)


def _interval(value: dict[str, Any], sign: str = "") -> str:
    low, high = value["ci95"]
    return f"{value['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _row(head: str, cells: list[str]) -> str:
    return "| " + " | ".join([head, *cells]) + " |"


if __name__ == "__main__":
    main()
