"""The stages in order, and what carries a user from one to the next.

A stage runs the stages it reads first; one whose artifact is up to date is not run again.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medvq.config import Config, StrictModel
from medvq.distributed import choose_device, load, together
from medvq.errors import UserError
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact, StageContext


@dataclass(frozen=True)
class Stage:
    """One step of the flow.

    Attributes
    ----------
    name : of its artifacts' folder and of its command.
    reads : the stages whose artifacts it is given.
    section : of the configuration, the part that its fingerprint hashes.
    run : ``module:function`` that does the work; imported late, since MONAI takes seconds.
    draw : ``module:function`` that draws its figures into ``figures/`` of its artifact.
    help : one line for the command line.
    shared : whether all processes do it together, where there are several.
    """

    name: str
    reads: tuple[str, ...]
    section: Callable[[Config], StrictModel]
    run: str
    draw: str
    help: str
    shared: bool = False


FLOW = {
    stage.name: stage
    for stage in (
        Stage(
            "ingest",
            (),
            lambda config: config.ingest,
            "medvq.stages.ingest:ingest",
            "medvq.report.audit_page:draw_ingest",
            "read the images: manifest, audit, alignment, cache of preprocessed images",
        ),
        Stage(
            "pretrain",
            ("ingest",),
            lambda config: config.pretrain,
            "medvq.stages.pretrain:pretrain",
            "medvq.report.figures:draw_pretrain",
            "train the VQ-VAE on the training images, without labels",
            shared=True,
        ),
        Stage(
            "extract",
            ("ingest", "pretrain"),
            lambda config: config.extract,
            "medvq.stages.extract:extract",
            "medvq.report.figures:draw_extract",
            "write codes, histograms and embeddings of every image to the feature store",
            shared=True,
        ),
        Stage(
            "prior",
            ("extract",),
            lambda config: config.prior,
            "medvq.stages.prior:prior",
            "medvq.report.figures:draw_prior",
            "train the model of the codes",
            shared=True,
        ),
        Stage(
            "sample",
            ("ingest", "pretrain", "extract", "prior"),
            lambda config: config.sample,
            "medvq.stages.sample:sample",
            "medvq.report.figures:draw_sample",
            "draw images from the model of the codes",
        ),
        Stage(
            "probe",
            ("extract",),
            lambda config: config.probe,
            "medvq.stages.probe:probe",
            "medvq.report.figures:draw_probe",
            "fit the linear probe on a fraction of the labels and judge it on the test split",
        ),
        Stage(
            "evaluate",
            ("ingest", "extract"),
            lambda config: config.probe,
            "medvq.stages.evaluate:evaluate",
            "medvq.report.figures:draw_evaluation",
            "judge a fitted probe (--probe) on another data set, with nothing fitted anew",
        ),
    )
}
CACHE = ".cache"
"""A folder beside the data sets' artifacts that may be deleted at any time."""


@dataclass(frozen=True)
class Options:
    """What a run is told beside the configuration.

    Attributes
    ----------
    probe : the artifact of a fitted probe, for the stage that judges one on another data set.
    """

    data_root: Path
    data_mirror: str | None
    artifacts: Path
    device: str = "auto"
    force: bool = False
    probe: Path | None = None


InputArtifacts = dict[str, dict[str, Artifact]]
"""By stage, inputs that it is given instead of what it would have made for itself."""


def run(
    name: str, config: Config, options: Options, inputs: InputArtifacts | None = None
) -> dict[str, Any]:
    """Run the stage ``name`` and what it needs beside the ``inputs``; return its line for
    ``JSON=1``.

    Raises
    ------
    UserError
        Anything that is the user's to mend.
    """
    started = time.perf_counter()
    if options.device == "cuda":
        choose_device(options.device)  # which refuses it before any work is done
    given: InputArtifacts = inputs or {}
    if name == "evaluate":
        config, given = _as_trained(config, options)
    artifact, fresh = _ensure(name, config, options, options.force, given)
    seconds = artifact.record["seconds"] if not fresh else time.perf_counter() - started
    return {
        "stage": name,
        "dataset": config.name,
        "artifact": str(artifact.folder),
        "seconds": round(seconds, 1),
        "up_to_date": not fresh,
        "mlflow_run_id": artifact.record["mlflow_run_id"],
        **artifact.summary,
    }


def _as_trained(config: Config, options: Options) -> tuple[Config, InputArtifacts]:
    """The data set of ``config``, read, placed and encoded as the probe's own images were.

    Nothing is swapped and no random version is made, since nothing is fitted on it. What is typical
    of the probe's own images, a prior of their codes says, made where there is none.
    """
    if (folder := options.probe) is None:
        raise UserError("evaluate needs --probe (PROBE=): the artifact of a fitted probe")
    if (probe := artifacts.find(folder.resolve())) is None or probe.record["stage"] != "probe":
        raise UserError(f"{folder} is no finished artifact of the stage 'probe'")
    extract = made_from(probe, "extract")
    ingest, pretrain = made_from(extract, "ingest"), made_from(extract, "pretrain")
    trained = Config.model_validate_json(json.dumps(probe.record["configuration"]))
    swap = trained.ingest.swap.model_copy(update={"enabled": False})
    changed = trained.model_copy(
        update={
            "name": config.name,
            "description": config.description,
            "source": config.source,
            "ingest": trained.ingest.model_copy(update={"swap": swap}),
            "extract": trained.extract.model_copy(update={"versions": 0}),
        }
    )
    given: InputArtifacts = {"ingest": {"reference": ingest}, "extract": {"pretrain": pretrain}}
    # First, since what is wrong with the new images should be told before minutes of training.
    new, _ = _ensure("extract", changed, options, False, given)
    prior = _prior_of(extract, trained, options)
    given["evaluate"] = {"probe": probe, "reference": ingest, "prior": prior}
    given["evaluate"] |= {"ingest": made_from(new, "ingest"), "extract": new}
    return changed, given


def _prior_of(extract: Artifact, trained: Config, options: Options) -> Artifact:
    """The prior of all training images of ``extract``, made where there is none."""
    every = trained.prior.model_copy(update={"only_class": None})
    config = trained.model_copy(update={"prior": every})
    why = f"what is typical of {trained.name} is learnt from its stored codes: minutes, this once"
    return _ensure("prior", config, options, False, {"prior": {"extract": extract}}, why)[0]


def made_from(artifact: Artifact, stage: str) -> Artifact:
    """The artifact of ``stage`` that ``artifact`` was made from, which lies beside it.

    Raises
    ------
    UserError
        It is not there.
    """
    folder = artifact.folder.parents[1] / stage / artifact.record["inputs"][stage]
    if (found := artifacts.find(folder)) is None:
        raise UserError(
            f"{artifact.folder} needs the artifact {folder} that it was made from: copy it there"
        )
    return found


def _ensure(
    name: str, config: Config, options: Options, force: bool, given: InputArtifacts, why: str = ""
) -> tuple[Artifact, bool]:
    """The finished artifact of a stage, and whether it was made just now, telling ``why``."""
    stage = FLOW[name]
    inputs = dict(given.get(name, {}))
    for read in stage.reads:
        if read not in inputs:
            inputs[read] = _ensure(read, config, options, False, given)[0]
    reads = {read: artifact.fingerprint for read, artifact in inputs.items()}
    if name == "ingest":
        reads["files"] = _files(config, options)
    section = {"seed": config.seed, **stage.section(config).model_dump(mode="json")}
    if name == "ingest":
        section["source"] = config.source.model_dump(mode="json")
    print_hash = artifacts.fingerprint(name, section, reads)
    folder = options.artifacts / config.name / name / print_hash
    found = artifacts.find(folder)
    if found is not None and not force:
        artifacts.point_latest(folder)
        return found, False
    if why:
        print(why, file=sys.stderr)
    with artifacts.partial(folder) as partial:
        record = {"stage": name, "dataset": config.name, "fingerprint": print_hash, "inputs": reads}
        record |= {"configuration": config.model_dump(mode="json"), **_provenance()}
        return _make(stage, config, options, inputs, partial, folder, record), True


def _make(
    stage: Stage,
    config: Config,
    options: Options,
    inputs: dict[str, Artifact],
    partial: Path,
    folder: Path,
    record: dict[str, Any],
) -> Artifact:
    from medvq.storage.tracking import Tracking

    started = time.perf_counter()
    device = choose_device(options.device)
    print(f"{stage.name}: {stage.help}", file=sys.stderr)
    with Tracking(options.artifacts, config, stage.name, folder.name, inputs) as tracking:
        context = StageContext(
            config=config,
            folder=partial,
            inputs=inputs,
            data_root=options.data_root,
            data_mirror=options.data_mirror,
            cache=options.artifacts / CACHE,
            device=device,
            report=tracking.report,
        )
        summary = together(stage.run, context) if stage.shared else load(stage.run)(context)
        # No result is shown without what the data set itself gives away.
        for artifact in reversed(inputs.values()):
            if "audit" in artifact.summary:
                summary.setdefault("audit", artifact.summary["audit"])
        figures = partial / "figures"
        figures.mkdir(exist_ok=True)
        load(stage.draw)(partial, inputs, summary, figures)
        tracking.finish(summary, partial)
        record |= {"device": device, "summary": summary, "mlflow_run_id": tracking.run_id}
        record["seconds"] = round(time.perf_counter() - started, 1)
    return artifacts.publish(partial, folder, record)


def _files(config: Config, options: Options) -> str:
    from medvq.datasets import sources
    from medvq.images.cache import ReadCache

    folder = sources.locate(config, options.data_root, options.data_mirror)
    with ReadCache(options.artifacts / CACHE) as cache:
        return sources.fingerprint(sources.list_images(config, folder), folder, cache)


def _provenance() -> dict[str, Any]:
    names = ("torch", "monai", "scikit-learn", "numpy", "medvq")
    return {
        "versions": {"python": platform.python_version()} | {n: _version(n) for n in names},
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "commit": commit(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the code that runs, ``-dirty`` where it was changed; None outside git."""
    root = Path(__file__).parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def as_json(result: dict[str, Any]) -> str:
    """One line, as the last of standard output."""
    return json.dumps(result, allow_nan=False, default=float)
