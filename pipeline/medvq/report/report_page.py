"""The report of a data set: one page with the result, what to distrust, and where it comes from.

Like the page of the audit it holds every picture and loads nothing. It is made of finished
artifacts; nothing is trained, and only the worst errors are encoded anew.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from medvq.config_file import config_file
from medvq.errors import UserError
from medvq.explain.atlas import CodeEntry, describe_codes
from medvq.explain.sources import ProbeSources
from medvq.modes import artifact_modes
from medvq.prior.existing import find_prior
from medvq.report.atlas_figure import ATLAS, CODES
from medvq.report.label_needs import fit_curve, plot_curve, say_needs
from medvq.report.probe_figures import draw_label_efficiency, shown_name
from medvq.report.report_figures import draw_errors, find_errors
from medvq.report.report_file import is_of, mark, report_file
from medvq.report.report_words import (
    distrust,
    efficiency_text,
    key_numbers,
    of_audit,
    sentence,
    sentence_without_probe,
    settings_argument,
)
from medvq.report.tables import METRIC_NAMES, metric_name, rounded
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact
from medvq.storage.feature_store import FEATURES
from medvq.storage.probe_encoder import NOT_OF_A_FILE
from medvq.storage.publication import unobstructed
from medvq.summaries import ExtractSummary, IngestSummary, PretrainSummary, ProbeSummary
from medvq.wording import counted

_ERRORS = 6
_CAPTIONS = {
    "images": "Images as read and as the network sees them; where acquisitions are swapped, with "
    "another image's.",
    "class_means": "Mean image of each class and split: what differs at the border is a shortcut.",
    "curves": "Losses of each epoch.",
    "reconstructions": "Validation images, their reconstructions and the error.",
    "codebook_use": "How often each code is used, by frequency.",
    "roc_and_calibration": "Left: sensitivity against false positives. Right: how often an image "
    "is positive, against the probability that it was given.",
    "decisions_and_abstention": "Left: net benefit of deciding by the probe. Right: what remains "
    "where the probe leaves the least certain images to people.",
    "predictions": "Predictions against the truth, of the probes of all label subsets.",
    "comparison": "Real images, images drawn from the model of the codes, and images whose codes "
    "are drawn at each place for themselves.",
    "samples": "Images drawn from the model of the codes.",
}


# The files and folders of artifacts that the page shows or is made of.
_READ = {"figures", FEATURES, "images.npy", "manifest.csv", "predictions.parquet"}


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes
    ----------
    address : holds the content itself.
    caption : says what it shows.
    text : says it, with the key numbers, to who cannot see it.
    source : the artifacts that it was made from.
    is_broad : whether it is far wider than high, as several panels side by side are: a phone shows
        it at a legible height, to be scrolled.
    """

    address: str
    caption: str
    text: str
    source: str
    is_broad: bool

    @classmethod
    def embed(cls, file: Path, caption: str, text: str, source: str) -> Picture:
        """Return the picture of a PNG file."""
        content = file.read_bytes()
        address = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        with Image.open(file) as image:
            width, height = image.size
        return cls(address, caption, text, source, is_broad=width > 2 * height)


def write_report(folder: Path, probe: Path | None = None) -> Path:
    """Write the report of a data set, and return its file; one that is up to date is kept.

    Parameters
    ----------
    folder : the folder of the data set's artifacts, such as ``artifacts/kermany``.
    probe : the artifact of the probe whose result it is about; None takes the last one, or where
        there is none the last extraction.

    Raises
    ------
    UserError
        Neither is finished, a file was changed or damaged, or the images were read to judge another
        data set's probe.
    """
    main = _find_main(folder, probe)
    file = report_file(folder)
    if is_of(file, main):
        return file
    of_probe = main.record.stage == "probe"
    extract = artifacts.source(main, "extract") if of_probe else main
    # An encoder of the user's own may have no network of ours beside it.
    inputs: list[str] = [n for n in ("ingest", "pretrain") if n in extract.record.inputs]
    read = {name: artifacts.source(extract, name) for name in inputs}
    chain: dict[str, Artifact] = {**read, "extract": extract}
    if of_probe:
        chain["probe"] = main
    for artifact in chain.values():
        _verify(artifact)
    with (
        artifact_modes(), unobstructed(folder), tempfile.TemporaryDirectory() as scratch
    ):  # fmt: skip
        text = _render(folder, chain, Path(scratch))
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}-{os.getpid()}")
        marked = text.replace("<head>", f"<head>\n{mark(folder, main)}", 1)
        aside.write_text(marked, encoding="utf-8")
        aside.replace(file)
    return file


def _verify(artifact: Artifact) -> None:
    """Verify the files of an artifact that the page shows or is made of."""
    if names := [name for name in artifact.record.files if Path(name).parts[0] in _READ]:
        artifacts.verify(artifact, *names)


def _find_main(folder: Path, probe: Path | None) -> Artifact:
    """Return the artifact that the report is about."""
    for stage in ("probe", "extract") if probe is None else ("probe",):
        found = artifacts.find_linked(probe or folder / stage / "latest")
        if found is not None and found.record.stage == stage:
            if stage == "extract":
                _check_own(folder, found)
            return found
    if probe is not None:
        raise UserError(f"{probe} is no finished probe to report on")
    raise UserError(
        f"{folder} holds neither a finished probe nor finished features to report on; run "
        "'make linear-probe' first"
    )


def _check_own(folder: Path, extract: Artifact) -> None:
    """Refuse features that another data set's model extracted, which lies with that data set."""
    judged = artifacts.find_linked(folder / "evaluate" / "latest")
    is_judged = judged is not None and judged.record.inputs.get("extract") == extract.fingerprint
    model = extract.record.inputs.get("pretrain")
    if is_judged and model and not (folder / "pretrain" / model).exists():
        raise UserError(
            f"the features of {extract.record.dataset} were extracted to judge a probe of another "
            "data set, which has the report; what the probe reached here is in the folder "
            "'evaluate'. For a report of these images run 'make linear-probe' without PROBE"
        )


def _render(folder: Path, chain: Mapping[str, Artifact], scratch: Path) -> str:
    main = chain.get("probe", chain["extract"])
    ingest = chain["ingest"].summary(IngestSummary)
    codes, pictures = _made_here(chain, scratch)
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report_page.html")
    if "probe" in chain:
        of_main = _of_probe(folder, main, ingest, scratch)
    else:
        of_main = {
            "probe": None,
            "sentence": sentence_without_probe(chain["extract"].summary(ExtractSummary), ingest),
            "distrust": list(of_audit(ingest.audit)) if ingest.audit else [],
        }
    stages = [artifact.record for artifact in chain.values()]
    return page.render(
        **of_main,
        dataset=main.record.dataset,
        configuration=_configuration(main.record.dataset),
        description=main.config().description,
        ingest=ingest,
        pretrain=chain["pretrain"].summary(PretrainSummary) if "pretrain" in chain else None,
        metric_name=metric_name,
        rounded=rounded,
        counted=counted,
        shown_name=shown_name,
        sections=dict(_sections(chain)),
        samples=_samples(chain),
        made=pictures,
        codes=codes,
        stages=stages,
        machines=list(dict.fromkeys(f"{one.machine} ({one.device})" for one in stages)),
        versions=main.record.versions,
        command=_command(main),
    )


def _of_probe(folder: Path, main: Artifact, ingest: IngestSummary, scratch: Path) -> dict[str, Any]:
    """Return what the page says of a probe."""
    probe, found = main.summary(ProbeSummary), alike(folder, main)
    summaries = {fraction: one.summary(ProbeSummary) for fraction, one in found.items()}
    curve = fit_curve(probe)
    extrapolate = None if curve is None else partial(plot_curve, probe, curve)
    draw_label_efficiency(summaries, file := scratch / "label_efficiency.png", extrapolate)
    headline = METRIC_NAMES[probe.headline]
    caption = (
        f"{headline[:1].upper()}{headline[1:]} at each share of the labels that has been run with "
        "these settings, with 95% intervals."
    )
    if curve is not None:
        caption += " Dashed: the curve beyond the labels at hand, and its 95% interval."
    fingerprints = ", ".join(found[fraction].fingerprint for fraction in sorted(found))
    return {
        "probe": probe,
        "sentence": sentence(probe, ingest),
        "needs": say_needs(probe, curve),
        "efficiency": Picture.embed(file, caption, efficiency_text(summaries), fingerprints),
        "fractions": sorted(found),
        "distrust": list(distrust(probe, ingest)),
        "metrics": _shown_metrics(probe),
    }


def alike(folder: Path, main: Artifact) -> dict[float, Artifact]:
    """Return the finished probes that differ from ``main`` in the share of labels alone, by it."""

    def rest(artifact: Artifact) -> tuple[str, str]:
        settings = {k: v for k, v in artifact.record.settings.items() if k != "label_fraction"}
        return json.dumps(settings, sort_keys=True), json.dumps(artifact.record.inputs)

    found = artifacts.all_of(folder / "probe")
    by_time = sorted(found, key=lambda artifact: artifact.record.finished)
    probes = {
        float(artifact.record.settings["label_fraction"]): artifact
        for artifact in by_time
        if rest(artifact) == rest(main)
    }
    return probes | {float(main.record.settings["label_fraction"]): main}


def _shown_metrics(probe: ProbeSummary) -> list[str]:
    names = list(probe.rows[0].metrics)
    return [probe.headline, *[name for name in names if name != probe.headline]][:6]


def _made_here(
    chain: Mapping[str, Artifact], scratch: Path
) -> tuple[list[CodeEntry], dict[str, Picture]]:
    """Draw the worst errors; find the atlas of codes."""
    pictures: dict[str, Picture] = {}
    atlas = chain["extract"].folder / "figures" / ATLAS
    codes = describe_codes(chain["extract"].folder / FEATURES, CODES) if atlas.exists() else []
    images = np.load(chain["ingest"].folder / "images.npy", mmap_mode="r")
    if codes:
        caption = (
            "One code a row, the most frequent first: where it stands in the images (bright: "
            "often), and the training patches that are nearest to it, each of another subject."
        )
        shares = ", ".join(f"{entry.code} {entry.share:.1%}" for entry in codes)
        text = f"{caption} Codes with their share of places: {shares}."
        pictures["atlas"] = Picture.embed(atlas, caption, text, chain["extract"].fingerprint)
    if "probe" not in chain:
        return codes, pictures
    errors = find_errors(chain["probe"].folder, chain["ingest"].folder, _ERRORS)
    # Grey pictures of an encoder of ours.
    if errors is not None and images.ndim == 3 and "pretrain" in chain:
        probe, file = chain["probe"], scratch / "errors.png"
        is_ours = not NOT_OF_A_FILE.keys() & set(probe.config().probe.features)
        sources = ProbeSources(probe.folder, "cpu") if is_ours else None
        classes = probe.summary(ProbeSummary).classes
        has_maps = draw_errors(errors, images, classes, sources, file)
        caption = (
            "Test images that the probe of the first label subset is surest of and wrong about."
        )
        if has_maps:
            caption += f" Orange places speak for {classes[1]}, blue ones against it."
        given = ", ".join(f"{one:.2f}" for one in errors.table["probability"])
        text = f"{caption} Probabilities that were given: {given}."
        pictures["errors"] = Picture.embed(file, caption, text, chain["probe"].fingerprint)
    return codes, pictures


def _sections(chain: Mapping[str, Artifact]) -> Iterator[tuple[str, list[Picture]]]:
    """Yield the figures of every stage."""
    numbers = key_numbers(chain)
    for name, artifact in chain.items():
        yield name, _pictures(artifact, numbers)


def _pictures(artifact: Artifact, numbers: Mapping[str, str]) -> list[Picture]:
    pictures = []
    for file in sorted((artifact.folder / "figures").glob("*.png")):
        caption = _CAPTIONS.get(file.stem, file.stem.replace("_", " ").capitalize() + ".")
        text = f"{caption} {numbers.get(file.stem, '')}".strip()
        pictures.append(Picture.embed(file, caption, text, artifact.fingerprint))
    return pictures


def _samples(chain: Mapping[str, Artifact]) -> list[Picture] | str:
    """Return the figures of the newest samples of the codes, or why there are none."""
    if "pretrain" not in chain:
        return "There is no model of codes beside an encoder of one's own."
    if not chain["pretrain"].config().pretrain.has_trained_decoder:
        return "No decoder was trained, so that images drawn from the codes would mean nothing."
    if (prior := find_prior(chain["extract"])) is None:
        return "No model of the codes has been trained: make prior trains one."
    samples = artifacts.all_of(chain["extract"].folder.resolve().parents[1] / "sample")
    newest = artifacts.newest(
        one for one in samples if one.record.inputs["prior"] == prior.fingerprint
    )
    if newest is None:
        return "A model of the codes was trained: make sample draws images from it."
    _verify(newest)
    return _pictures(newest, {})


def _configuration(name: str) -> str:
    """Return what DATASET is for the data set of this name: a user's own has a file of its own."""
    return name if config_file(name).is_file() else f"{name}.yaml"


def _command(main: Artifact) -> str:
    name = _configuration(main.record.dataset)
    changes = settings_argument(main.record.overrides)
    if main.record.stage == "extract":
        return f"make extract-features DATASET={name}{changes}"
    fraction = main.record.settings["label_fraction"]
    return f"make linear-probe DATASET={name} LABEL_FRACTION={fraction:g}{changes}"
