"""What the alignment gains at 5% of the labels: the whole flow with it and without, paired.

Writes ``docs/ALIGNMENT.md``. Both runs draw the same labels and are judged on the same images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.command_line import arguments, configuration, provenance
from pipeline.flow import run
from pipeline.probe import metrics

DOCS = Path(__file__).parent.parent / "docs"
FEATURES = ("medvq", "raw_pixels", "untrained_encoder", "hog")


def main() -> None:
    """Run the study and write its page."""
    parsed, options = arguments(main.__doc__ or "")
    with_it = configuration(parsed, "probe.label_fraction=0.05")
    without = configuration(parsed, "probe.label_fraction=0.05", "ingest.alignment.enabled=false")
    aligned, plain = (
        pd.read_parquet(Path(run("probe", config, options)["artifact"]) / "predictions.parquet")
        for config in (with_it, without)
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
        one, two = (table[table["features"] == name] for table in (aligned, plain))
        first, second = _aurocs(one, with_it.probe.bootstrap), _aurocs(two, with_it.probe.bootstrap)
        repeats = metrics.draw_weights(len(first[0]), with_it.probe.bootstrap, with_it.seed)
        gain = metrics.interval(first[0] - second[0], first[1] - second[1], repeats)
        low, high = gain["ci95"]
        lines.append(
            f"| {name} | {first[0].mean():.3f} | {second[0].mean():.3f} "
            f"| {gain['mean']:+.3f} [{low:+.3f}, {high:+.3f}] |"
        )
    (DOCS / "ALIGNMENT.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _aurocs(table: pd.DataFrame, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    draws = [draw.sort_values("image_id") for _, draw in table.groupby("draw")]
    truth = draws[0]["label"].to_numpy(np.int64)
    weights = metrics.subject_weights(draws[0]["subject_id"].to_numpy(str), resamples, 0)

    def compute(draw: int, given: np.ndarray) -> dict[str, np.ndarray]:
        return metrics.evaluate(truth, draws[draw]["probability"].to_numpy(), 0.5, given)

    return metrics.over_draws(compute, len(draws), weights)["auroc"]


if __name__ == "__main__":
    main()
