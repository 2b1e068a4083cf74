"""How probabilities are calibrated best, and what correcting them for a shifted prevalence does.

Both are judged on validation images, as they are and acquisition-swapped; no test image is looked
at. Writes ``docs/CALIBRATION-<data set>.md``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from medvq.config import Config
from medvq.errors import UserError
from medvq.evaluation import metrics
from medvq.evaluation.prevalence import at_prevalence
from medvq.evaluation.tasks import Binary
from medvq.flow import run
from medvq.method.probe import CLEAN_WEIGHT, ProbeFeatures, SelectedModel, select_model
from medvq.stages.probe import ProbeData, Store, images_of, label_draws
from numpy.typing import NDArray

from benchmarks.command_line import arguments, configuration, provenance, run_study
from benchmarks.tables import table_row

DOCS = Path(__file__).parent.parent / "docs"
# By name, the weight of images as they are beside their swapped copies.
MIXTURES = {
    "not calibrated": None,
    "as they are": 1.0,
    "3/4 as they are": 0.75,
    "half and half": 0.5,
    "1/4 as they are": 0.25,
    "swapped": 0.0,
}
BEFORE, CHOSEN = "3/4 as they are", "half and half"
MEASURES = ("ece", "brier", "log_loss", "balanced_accuracy")
PREVALENCES = (0.25, 0.4, 0.5, 0.62, 0.74, 0.85)
_RESAMPLES = 5
_TASK = Binary()
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def main() -> None:
    """Run the study and write its page."""
    parsed, options = arguments(main.__doc__ or "")
    config = configuration(parsed)
    made_on = provenance(config)
    store = Store(Path(run("extract", config, options)["artifact"]))
    images = images_of(store)
    draws = label_draws(images, config.probe, config.seed)
    features = config.probe.features
    _, encoded = store.encode(features, config.probe, config.seed, images.unlabelled_train)
    if not isinstance(images.task, Binary) or encoded.swapped is None:
        raise UserError("benchmark-calibration is for two classes, and acquisitions to swap")
    fitted = [
        select_model(encoded, images.truth, images.subjects, drawn, config.probe, _TASK)
        for drawn in draws
    ]
    learnt = [float(images.truth[drawn].mean()) for drawn in draws]
    mixtures = by_mixture(fitted, learnt, encoded, images)
    prevalences = by_prevalence(fitted, learnt, encoded, images, config.seed)
    page = DOCS / f"CALIBRATION-{config.name}.md"
    page.write_text(_page(config, mixtures, prevalences, made_on), encoding="utf-8")
    print(page)


def calibrated(chosen: SelectedModel, clean_weight: float | None) -> Any:
    """The model, calibrated by held-out scores of which those of images as they are weigh so."""
    model = copy.deepcopy(chosen.model)
    if clean_weight is not None:
        assert chosen.swapped is not None
        scores = np.concatenate([chosen.clean, chosen.swapped])
        weights = np.repeat([clean_weight, 1 - clean_weight], len(chosen.truth))
        _TASK.calibrate(model, np.tile(chosen.truth, 2), scores, weights)
    return model


def by_mixture(
    fitted: Sequence[SelectedModel],
    learnt: Sequence[float],
    encoded: ProbeFeatures,
    images: ProbeData,
) -> pd.DataFrame:
    """For each draw and mixture :data:`MEASURES` on validation images, 3/4 as they are."""
    truth, rows = images.truth[images.validation], []
    for draw, (chosen, threshold) in enumerate(zip(fitted, learnt, strict=True)):
        for name, weight in MIXTURES.items():
            model = calibrated(chosen, weight)
            clean, swapped = (
                _measured(truth, _TASK.predict(model, table), threshold)
                for table in _tables(encoded, images).values()
            )
            mixed = {m: CLEAN_WEIGHT * clean[m] + (1 - CLEAN_WEIGHT) * swapped[m] for m in MEASURES}
            rows.append({"draw": draw, "mixture": name, **mixed})
    return pd.DataFrame(rows)


def by_prevalence(
    fitted: Sequence[SelectedModel],
    learnt: Sequence[float],
    encoded: ProbeFeatures,
    images: ProbeData,
    seed: int,
) -> pd.DataFrame:
    """ECE and Brier score of validation images drawn to another prevalence: as said, corrected
    without labels, and corrected by the prevalence that is otherwise unknown.
    """
    rng, rows = np.random.default_rng(seed), []
    truth = images.truth[images.validation]
    for chosen, prior in zip(fitted, learnt, strict=True):
        model = calibrated(chosen, MIXTURES[CHOSEN])
        for kind, table in _tables(encoded, images).items():
            predicted = _TASK.predict(model, table)
            for prevalence in PREVALENCES:
                for _ in range(_RESAMPLES):
                    taken = drawn_to(truth, prevalence, rng)
                    said, one = predicted[taken], np.ones((1, len(taken)))
                    before = metrics.evaluate(truth[taken], said, prior, one)
                    after = metrics.evaluate_prior_shift(truth[taken], said, prior, one)
                    known = metrics.evaluate(
                        truth[taken], at_prevalence(said, prior, prevalence), 0.5, one
                    )
                    found = {
                        "ece": before["ece"],
                        "ece_corrected": after["ece_prior_shift"],
                        "ece_known": known["ece"],
                        "brier": before["brier"],
                        "brier_corrected": after["brier_prior_shift"],
                        "brier_known": known["brier"],
                        "estimated": after["prevalence_prior_shift"],
                    }
                    values = {name: float(value[0]) for name, value in found.items()}
                    rows.append({"images": kind, "prevalence": prevalence, **values})
    return pd.DataFrame(rows)


def drawn_to(truth: Labels, prevalence: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """As many rows as there can be with this share of class 1, none twice."""
    of_class = [np.flatnonzero(truth == label) for label in (0, 1)]
    shares = np.array([1 - prevalence, prevalence])
    most = min(len(rows) / share for rows, share in zip(of_class, shares, strict=True))
    return np.concatenate(
        [
            rng.choice(rows, int(most * share + 1e-9), replace=False)
            for rows, share in zip(of_class, shares, strict=True)
        ]
    )


def _tables(encoded: ProbeFeatures, images: ProbeData) -> dict[str, Floats]:
    assert encoded.swapped is not None
    return {
        "as they are": encoded.images[images.validation],
        "swapped": encoded.swapped[images.validation],
    }


def _measured(truth: Labels, said: Floats, threshold: float) -> dict[str, float]:
    found = metrics.evaluate(truth, said, threshold, np.ones((1, len(truth))))
    likely = np.where(truth == 1, said, 1 - said)
    return {
        **{name: float(found[name][0]) for name in MEASURES if name in found},
        "log_loss": -float(np.log(likely.clip(1e-15)).mean()),
    }


def _page(config: Config, mixtures: pd.DataFrame, prevalences: pd.DataFrame, made_on: str) -> str:
    fraction = f"{100 * config.probe.label_fraction:g}%"
    mean = mixtures.groupby("mixture", sort=False)[list(MEASURES)].mean()
    before = mixtures[mixtures["mixture"] == BEFORE].set_index("draw")[list(MEASURES)]
    lines = [
        f"# Calibration: {config.name}",
        "",
        f"Made by `make benchmark-calibration DATASET={config.name} "
        f"LABEL_FRACTION={config.probe.label_fraction:g}`. {made_on}",
        "",
        f"MedVQ's probe at {fraction} of the labels, {mixtures['draw'].nunique()} draw(s), judged "
        "on validation images; no test image is looked at.",
        "",
        "## Which held-out images calibrate",
        "",
        "The probe's scores of drawn images that it was not fitted on, as they are and "
        "acquisition-swapped, in other proportions. Measures are three parts of validation images "
        "as they are and one part of swapped ones; in brackets the difference to "
        f"'{BEFORE}', with its standard error over draws. MedVQ takes '{CHOSEN}'.",
        "",
        table_row("calibrated by", MEASURES),
        table_row("---", ["---"] * len(MEASURES)),
    ]
    for name in MIXTURES:
        own = mixtures[mixtures["mixture"] == name].set_index("draw")[list(MEASURES)]
        gap = own - before
        error = gap.std() / len(gap) ** 0.5
        cells = [
            f"{mean.loc[name, m]:.4f} ({gap[m].mean():+.4f} ± {error[m]:.4f})" for m in MEASURES
        ]
        lines.append(table_row(name, cells))
    lines += [
        "",
        "## Where the prevalence is another than that of the drawn labels",
        "",
        "Validation images drawn to another prevalence. Corrected: the prevalence is estimated "
        "from all of them together without a label (Saerens et al. 2002), and the probabilities "
        "are carried to it; known: carried to the true one, which nobody knows. Swapped images "
        "break what the estimate rests on, that each class looks as it did.",
        "",
    ]
    columns = [c for c in prevalences.columns if c not in ("images", "prevalence")]
    lines += [
        table_row("images", ["prevalence", *columns]),
        table_row("---", ["---"] * (1 + len(columns))),
    ]
    for (kind, prevalence), part in prevalences.groupby(["images", "prevalence"]):
        cells = [f"{part[column].mean():.3f}" for column in columns]
        lines.append(table_row(str(kind), [f"{prevalence:.2f}", *cells]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_study(main)
