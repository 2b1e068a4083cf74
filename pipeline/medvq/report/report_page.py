"""The report of a data set: one page with the result, what to distrust, and where it comes from.

Like the page of the audit it holds every picture and loads nothing. It is made of finished
artifacts; nothing is trained or encoded anew but the few images of the worst errors.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from medvq.errors import UserError
from medvq.explain.atlas import CodeEntry, describe_codes
from medvq.explain.sources import ProbeSources
from medvq.modes import artifact_modes
from medvq.report.probe_figures import draw_label_efficiency, shown_name
from medvq.report.report_figures import draw_atlas, draw_errors, find_errors
from medvq.report.report_file import is_of, mark, report_file
from medvq.report.tables import METRIC_NAMES, metric_name
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact
from medvq.storage.feature_store import FEATURES
from medvq.summaries import AuditHeadline, IngestSummary, Interval, PretrainSummary, ProbeSummary

_CODES, _PATCHES, _ERRORS = 16, 6, 6
_FEW_SUBJECTS = 100
"""Labelled test subjects below which an interval is wide whatever the probe does."""
_SHIFTED = 0.7
"""AUROC from which on test images can be told from training images."""
_CAPTIONS = {
    "images": "Images as read, as the network sees them, and with another image's acquisition.",
    "class_means": "Mean image of each class and split: what differs at the border is a shortcut.",
    "training": "Losses of each epoch.",
    "reconstructions": "Validation images, their reconstructions and the error.",
    "codebook_use": "How often each code is used, by frequency.",
    "roc_and_calibration": "Left: sensitivity against false positives. Right: how often an image "
    "is positive, against the probability that it was given.",
    "decisions_and_abstention": "Left: net benefit of deciding by the probe. Right: what remains "
    "where the probe leaves the least certain images to people.",
    "numbers": "Predicted against true numbers.",
    "confusion": "Which classes are taken for which.",
    "samples": "Images drawn from the model of the codes.",
}


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes
    ----------
    address : holds the content itself.
    caption : says what it shows; also the text of who cannot see it.
    source : the artifact that it was made from.
    """

    address: str
    caption: str
    source: str


@dataclass(frozen=True)
class Warned:
    """Something to distrust, in a sentence."""

    what: str
    text: str


def write_report(folder: Path, probe: Path | None = None) -> Path:
    """Write the report of a data set, and return its file; one that is there already is kept.

    Parameters
    ----------
    folder : the folder of the data set's artifacts, such as ``artifacts/kermany``.
    probe : the artifact of the probe whose result it is about; None takes the last one.

    Raises
    ------
    UserError
        No probe of the data set is finished.
    """
    main = artifacts.find((probe or folder / "probe" / "latest").resolve())
    if main is None or main.record.stage != "probe":
        raise UserError(
            f"{folder} holds no finished probe to report on; run 'make linear-probe' first"
        )
    file = report_file(folder)
    if is_of(file, main):
        return file
    extract = artifacts.source(main, "extract")
    # An encoder of the user's own may have no network of ours beside it.
    inputs: list[str] = [n for n in ("ingest", "pretrain") if n in extract.record.inputs]
    read = {name: artifacts.source(extract, name) for name in inputs}
    chain: dict[str, Artifact] = {**read, "extract": extract, "probe": main}
    with artifact_modes(), tempfile.TemporaryDirectory() as scratch:
        text = _render(folder, chain, Path(scratch))
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}-{os.getpid()}")
        aside.write_text(text.replace("<head>", f"<head>\n{mark(main)}", 1), encoding="utf-8")
        aside.replace(file)
    return file


def _render(folder: Path, chain: Mapping[str, Artifact], scratch: Path) -> str:
    probe = chain["probe"].summary(ProbeSummary)
    probes = alike(folder, chain["probe"])
    draw_label_efficiency(
        {fraction: found.summary(ProbeSummary) for fraction, found in probes.items()},
        scratch / "label_efficiency.png",
    )
    codes, pictures = _made_here(chain, scratch)
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report_page.html")
    ingest = chain["ingest"].summary(IngestSummary)
    return page.render(
        dataset=chain["probe"].record.dataset,
        description=chain["probe"].config().description,
        sentence=sentence(probe, ingest),
        efficiency=_embed(scratch / "label_efficiency.png"),
        fractions=sorted(probes),
        distrust=list(distrust(probe, ingest)),
        probe=probe,
        ingest=ingest,
        pretrain=chain["pretrain"].summary(PretrainSummary) if "pretrain" in chain else None,
        headline=METRIC_NAMES[probe.headline],
        metric_name=metric_name,
        shown_name=shown_name,
        metrics=_shown_metrics(probe),
        sections=dict(_sections(chain)),
        made=pictures,
        codes=codes,
        stages=[artifact.record for artifact in chain.values()],
        versions=chain["probe"].record.versions,
        command=_command(chain["probe"]),
    )


def alike(folder: Path, main: Artifact) -> dict[float, Artifact]:
    """Return the finished probes that differ from ``main`` in the share of labels alone, by it."""

    def rest(artifact: Artifact) -> tuple[str, str]:
        settings = {k: v for k, v in artifact.record.settings.items() if k != "label_fraction"}
        return json.dumps(settings, sort_keys=True), json.dumps(artifact.record.inputs)

    found = [
        artifact
        for path in sorted((folder / "probe").glob("*"))
        if not path.is_symlink() and (artifact := artifacts.find(path)) is not None
    ]
    by_time = sorted(found, key=lambda artifact: artifact.record.finished)
    probes = {
        float(artifact.record.settings["label_fraction"]): artifact
        for artifact in by_time
        if rest(artifact) == rest(main)
    }
    return probes | {float(main.record.settings["label_fraction"]): main}


def sentence(probe: ProbeSummary, ingest: IngestSummary) -> str:
    """Say the result and its interval."""
    result = probe.rows[0].metrics[probe.headline]
    where = "in cross-validation"
    if probe.evaluate == "test":
        test = ingest.splits["test"]
        where = f"on {test.images} test images of {test.subjects} subjects"
    return (
        f"With {100 * probe.label_fraction:g}% of the labels ({probe.labels} images of "
        f"{probe.subjects} subjects) MedVQ reaches {METRIC_NAMES[probe.headline]} "
        f"{_interval(result)} {where}."
    )


def distrust(probe: ProbeSummary, ingest: IngestSummary) -> Iterator[Warned]:
    """Yield what should be known before the result is believed."""
    for name, difference in probe.medvq_minus.items():
        if difference.ci95[0] <= 0:
            verdict = "is better" if difference.ci95[1] < 0 else "may be as good"
            shown = shown_name(name)
            less = f"MedVQ less {shown}: {_interval(difference, signed=True)}, not surely above 0."
            yield Warned(f"{shown} {verdict}", less)
    if probe.evaluate == "test" and ingest.labelled_test_subjects < _FEW_SUBJECTS:
        yield Warned(
            "few test subjects",
            f"{ingest.labelled_test_subjects} labelled subjects are in the test split, so that the "
            "interval is wide; probe.evaluate=cross_validation judges on all of them.",
        )
    if probe.audit is not None:
        yield from _of_audit(probe.audit)
    if given := " and ".join(probe.intervals_given):
        yield Warned(
            "what the interval leaves out", f"It is given {given}: chance in that is not in it."
        )


def _of_audit(audit: AuditHeadline) -> Iterator[Warned]:
    if (shortcut := audit.strongest_shortcut) is not None:
        yield Warned(
            "strongest shortcut",
            f"{_capital(shortcut.what)} alone tells the label at AUROC {shortcut.auroc:.3f}.",
        )
    for label, auroc in audit.test_told_from_train.items():
        if auroc is not None and auroc > _SHIFTED:
            of_class = f" of class {label}" if label else ""
            yield Warned(
                "test is not drawn like train",
                f"Test images{of_class} are told from training images at AUROC {auroc:.3f}.",
            )
    if audit.warnings:
        yield Warned(
            "the audit",
            f"{audit.warnings} of its findings call for a look; they are in audit.html.",
        )


def _interval(value: Interval, signed: bool = False) -> str:
    low, high = value.ci95
    plus = "+" if signed else ""
    return f"{value.mean:{plus}.3f} [{low:.3f}, {high:.3f}]"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _shown_metrics(probe: ProbeSummary) -> list[str]:
    names = list(probe.rows[0].metrics)
    return [probe.headline, *[name for name in names if name != probe.headline]][:6]


def _made_here(
    chain: Mapping[str, Artifact], scratch: Path
) -> tuple[list[CodeEntry], dict[str, Picture]]:
    """Draw the atlas of codes and the worst errors."""
    pictures: dict[str, Picture] = {}
    store = chain["extract"].folder / FEATURES
    codes = describe_codes(store, _CODES, _PATCHES) if "pretrain" in chain else []
    images = np.load(chain["ingest"].folder / "images.npy", mmap_mode="r")
    if codes:
        draw_atlas(codes, images, file := scratch / "atlas.png")
        caption = (
            "One code a row, the most frequent first: where it stands in the images (bright: "
            "often), and training patches that have it, each of another subject."
        )
        pictures["atlas"] = Picture(_embed(file), caption, chain["extract"].fingerprint)
    errors = find_errors(chain["probe"].folder, chain["ingest"].folder, _ERRORS)
    if errors is not None and images.ndim == 3 and codes:  # grey pictures of an encoder of ours
        sources = ProbeSources(chain["probe"].folder, "cpu")
        has_maps = draw_errors(errors, sources, file := scratch / "errors.png")
        caption = (
            "Test images that the probe of the first label subset is surest of and wrong about."
        )
        if has_maps:
            caption += " Orange places speak for the second class, blue ones against it."
        pictures["errors"] = Picture(_embed(file), caption, chain["probe"].fingerprint)
    return codes, pictures


def _sections(chain: Mapping[str, Artifact]) -> Iterator[tuple[str, list[Picture]]]:
    """Yield the figures of every stage."""
    for name, artifact in chain.items():
        files = sorted((artifact.folder / "figures").glob("*.png"))
        yield name, [_picture(file, artifact) for file in files]


def _picture(file: Path, artifact: Artifact) -> Picture:
    caption = _CAPTIONS.get(file.stem, file.stem.replace("_", " ").capitalize() + ".")
    return Picture(_embed(file), caption, artifact.fingerprint)


def _command(probe: Artifact) -> str:
    fraction = probe.record.settings["label_fraction"]
    return f"make linear-probe DATASET={probe.record.dataset} LABEL_FRACTION={fraction:g}"


def _embed(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
