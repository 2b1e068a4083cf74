"""What the alignment gains at 5% of the labels: the whole flow with it and without, paired.

Writes ``docs/ALIGNMENT.md``. Both runs draw the same labels and are judged on the same images.
"""

from __future__ import annotations

from pathlib import Path

from medvq.flow import run

from benchmarks.command_line import arguments, configuration, provenance, run_study
from benchmarks.pairing import aurocs, gain, predictions_of
from benchmarks.tables import interval

DOCS = Path(__file__).parent.parent / "docs"
FEATURES = ("medvq", "raw_pixels", "untrained_encoder", "hog")


def main() -> None:
    """Run the study and write its page."""
    parsed, options = arguments(main.__doc__ or "")
    with_it = configuration(parsed, "probe.label_fraction=0.05")
    without = configuration(parsed, "probe.label_fraction=0.05", "ingest.alignment.enabled=false")
    aligned, plain = (
        predictions_of(run("probe", config, options)["artifact"]) for config in (with_it, without)
    )
    lines = [
        "# What the alignment gains",
        "",
        f"Made by `make benchmark-alignment`. {provenance(with_it)}",
        "",
        "AUROC on the test split at 5% of the labels, mean over the same draws with and without "
        "the alignment; the difference is paired over draws and test subjects (95% interval). "
        "Without it the whole image is used.",
        "",
        "| features | aligned | not aligned | gain |",
        "|---|---|---|---|",
    ]
    for name in FEATURES:
        first, second = (
            aurocs(table[table["features"] == name], with_it) for table in (aligned, plain)
        )
        lines.append(
            f"| {name} | {first[0].mean():.3f} | {second[0].mean():.3f} "
            f"| {interval(gain(first, second, with_it), '+')} |"
        )
    (DOCS / "ALIGNMENT.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    run_study(main)
