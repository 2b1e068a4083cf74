"""Run a stage and the stages that it reads; what is up to date is not run again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvq import distributed
from medvq.code_hash import PACKAGE, changed, code_of
from medvq.config import Config
from medvq.device import choose_device, reserve_blas_memory
from medvq.errors import UserError
from medvq.modes import artifact_modes, folder_mode
from medvq.stages import STAGES
from medvq.stages.stage import Ensure, InputArtifacts, RunOptions, Stage
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact, Record, StageContext
from medvq.storage.publication import partial_folder, point_latest, writing
from medvq.storage.verification import Verification
from medvq.summaries import JsonObject, Summary

if TYPE_CHECKING:
    from medvq.storage.tracking import Tracking

__all__ = ["STAGES", "RunOptions", "StageResult", "commit", "run"]


@dataclass(frozen=True)
class StageResult:
    """What a run of a stage gives.

    Attributes
    ----------
    seconds : of this run; of the run that made the artifact, where it is up to date.
    up_to_date : whether the artifact was there already.
    accepted_code : modules that have changed since the artifact was made, where the user accepted
        it all the same.
    """

    stage: Stage[Any]
    artifact: Artifact
    summary: Summary
    seconds: float
    up_to_date: bool
    accepted_code: tuple[str, ...] = ()

    def to_json(self) -> JsonObject:
        """Return the object that ``JSON=1`` prints."""
        accepted = {"accepted_code": list(self.accepted_code)} if self.accepted_code else {}
        return {
            "stage": self.stage.name,
            "dataset": self.artifact.record.dataset,
            "artifact": str(self.artifact.folder),
            "seconds": round(self.seconds, 1),
            "up_to_date": self.up_to_date,
            "mlflow_run_id": self.artifact.record.mlflow_run_id,
            **accepted,
            **self.summary.to_json(),
        }

    def table(self) -> list[str]:
        """Return the lines for people."""
        return self.stage.table(self.summary)


def run(
    stage: Stage[Any] | str,
    config: Config,
    options: RunOptions | None = None,
    inputs: InputArtifacts | None = None,
) -> StageResult:
    """Run a stage and what it needs beside ``inputs``.

    Parameters
    ----------
    stage : a stage or the name of one of :data:`~medvq.stages.STAGES`.
    inputs : by stage name, artifacts to read instead of those that would be made.

    Raises
    ------
    UserError
        Anything that is the user's to mend.
    TypeError
        ``config`` is no configuration, but its name, say.
    """
    started = time.perf_counter()
    options = options or RunOptions()
    if isinstance(stage, str):
        if stage not in STAGES:
            raise UserError(f"there is no stage {stage!r}; there are: {', '.join(STAGES)}")
        stage = STAGES[stage]
    if not isinstance(config, Config):
        raise TypeError(f"config is a {type(config).__name__}; give what load_config returns")
    if options.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={options.device} is none of: auto, cpu, cuda")
    if options.device == "cuda":
        choose_device(options.device)  # refuses it before any work is done
    folder_mode()  # likewise
    made = _Flow(options).ensure(stage, config, options.force, dict(inputs or {}))
    if not made.fresh and distributed.rank() == 0:
        artifacts.verify(made.artifact)
    summary = made.artifact.summary(stage.summary)
    seconds = time.perf_counter() - started if made.fresh else made.artifact.record.seconds
    return StageResult(stage, made.artifact, summary, seconds, not made.fresh, made.accepted)


def ensurer(options: RunOptions) -> Ensure:
    """Return a function that makes the artifact of a stage, or finds it up to date."""
    return _Flow(options).artifact


@dataclass(frozen=True)
class _Made:
    """An artifact, whether it was made just now, and the changed code that was accepted."""

    artifact: Artifact
    fresh: bool
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """What an artifact is to be made of, before it is made."""

    stage: Stage[Any]
    config: Config
    inputs: dict[str, Artifact]
    reads: dict[str, str]
    settings: JsonObject
    code: dict[str, str]
    parent: Path

    @property
    def fingerprint(self) -> str:
        return artifacts.fingerprint(self.stage.name, self.settings, self.reads, self.code)

    @property
    def folder(self) -> Path:
        return self.parent / self.fingerprint


class _Flow:
    """Makes artifacts under the options of one run."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.waiting: list[tuple[Stage[Any], Config]] = []
        self.outside: dict[tuple[str, str], Mapping[str, str]] = {}

    def ensure(
        self,
        stage: Stage[Any],
        config: Config,
        force: bool,
        given: InputArtifacts,
        why: str = "",
    ) -> _Made:
        """Return the artifact of a stage, made where there is none, saying ``why``."""
        inputs = dict(given.get(stage.name, {}))
        if stage.prepare is not None:
            config, prepared = stage.prepare(config, self.options, self.artifact)
            inputs |= prepared
        self.waiting.append((stage, config))
        for read in stage.reads:
            if read.name not in inputs and read.needed(config):
                inputs[read.name] = self.ensure(read, config, False, given).artifact
        self.waiting.pop()
        plan = self._plan(stage, config, inputs)
        # The first process decides for all, so that none looks while it publishes.
        made = distributed.from_first(lambda: None if force else self._up_to_date(plan))
        if made is not None:
            return made
        for later, its_config in [*self.waiting, (stage, config)]:
            if later.check is not None:
                later.check(its_config, inputs)
        if why and distributed.rank() == 0:
            print(why, file=sys.stderr)
        return _Made(self._make(plan), fresh=True)

    def artifact(
        self, stage: Stage[Any], config: Config, inputs: InputArtifacts, why: str = ""
    ) -> Artifact:
        """Return the artifact of a stage, with ``inputs`` in place of what it would make."""
        return self.ensure(stage, config, False, inputs, why).artifact

    def _plan(self, stage: Stage[Any], config: Config, inputs: dict[str, Artifact]) -> _Plan:
        outside = self._outside(stage, config)
        reads = {name: artifact.fingerprint for name, artifact in inputs.items()} | dict(outside)
        settings = {"seed": config.seed, **stage.settings(config)}
        parent = self.options.artifacts / config.name / stage.name
        return _Plan(stage, config, inputs, reads, settings, code_of(stage.run.__module__), parent)

    def _outside(self, stage: Stage[Any], config: Config) -> Mapping[str, str]:
        """Return the fingerprints of what a stage reads beside artifacts.

        To list the files of a data set takes long, and many stages build on it: it is done once.
        """
        if (fingerprints := stage.outside) is None:
            return {}
        key = (stage.name, config.model_dump_json())
        if key not in self.outside:
            self.outside[key] = distributed.from_first(lambda: fingerprints(config, self.options))
        return self.outside[key]

    def _up_to_date(self, plan: _Plan) -> _Made | None:
        if (artifact := artifacts.existing(plan.folder)) is not None:
            point_latest(plan.folder)
            return _Made(artifact, fresh=False)
        if (same := _of_same_content(plan)) is not None:
            unchanged = "nothing that it reads has changed"
            print(f"{plan.stage.name}: {unchanged}; {same.fingerprint} is used", file=sys.stderr)
            point_latest(same.folder)
            return _Made(same, fresh=False)
        other = artifacts.differing_in_code(plan.parent, plan.settings, plan.reads)
        if other is None:
            return None
        modules = changed(other.record.code, plan.code)
        since = f"{plan.stage.name}: code changed since commit {other.record.commit}: " + ", ".join(
            modules
        )
        if not self.options.accept_code:
            print(f"{since}; ACCEPT_CODE=1 uses the old result", file=sys.stderr)
            return None
        print(f"{since}; the old result is used", file=sys.stderr)
        point_latest(other.folder)
        return _Made(other, fresh=False, accepted=tuple(modules))

    def _make(self, plan: _Plan) -> Artifact:
        """Run the stage in every process, or in the first one alone; the first one publishes."""
        reserve_blas_memory()
        with artifact_modes():
            if distributed.rank() == 0:
                with writing(plan.folder) as folder:
                    distributed.barrier()
                    tracking = self._tracking(plan, folder)
                    record = self._write(plan, folder, tracking)
                    artifacts.publish(folder, plan.folder, record)
                    tracking.settle(plan.folder)
            else:
                distributed.barrier()
                if plan.stage.distributed:
                    plan.stage.run(self._context(plan, partial_folder(plan.folder)))
        distributed.barrier()
        artifact = artifacts.find(plan.folder)
        assert artifact is not None
        return artifact

    def _context(self, plan: _Plan, folder: Path) -> StageContext:
        return StageContext(
            config=plan.config,
            folder=folder,
            inputs=plan.inputs,
            data_root=self.options.data_root,
            data_mirror=self.options.data_mirror,
            device=choose_device(self.options.device),
            cache=self.options.cache,
        )

    def _tracking(self, plan: _Plan, folder: Path) -> Tracking:
        from medvq.storage.tracking import Tracking

        return Tracking(
            self.options.artifacts,
            folder,
            plan.config,
            plan.stage.name,
            plan.fingerprint,
            plan.inputs,
            commit(),
        )

    def _write(self, plan: _Plan, folder: Path, tracking: Tracking) -> Record:
        started = time.perf_counter()
        stage, context = plan.stage, self._context(plan, folder)
        print(f"{stage.name}: {stage.help}", file=sys.stderr)
        label = stage.label(plan.config) if stage.label else ""
        settings = {**stage.settings(plan.config), "seed": plan.config.seed}
        with tracking, Verification(plan.inputs.values()) as verification:
            tracking.start(label, settings)

            def report(metrics: dict[str, float], step: int) -> None:
                verification.check()
                tracking.report(metrics, step)

            summary = stage.run(replace(context, report=report))
            summary = _with_audit(summary, plan.inputs)
            context.figures.mkdir(exist_ok=True)
            if stage.draw is not None:
                stage.draw(context, summary)
            tracking.finish(summary.runs(), folder)
        return Record(
            stage=stage.name,
            dataset=plan.config.name,
            fingerprint=plan.fingerprint,
            inputs=plan.reads,
            settings=plan.settings,
            code=plan.code,
            configuration=plan.config.model_dump(mode="json"),
            versions=_versions(),
            machine=f"{platform.machine()}, {os.cpu_count()} processors",
            commit=commit(),
            device=context.device,
            seconds=round(time.perf_counter() - started, 1),
            mlflow_run_id=tracking.run_id,
            summary=summary.to_json(),
            overrides=list(self.options.overrides),
        )


def _of_same_content(plan: _Plan) -> Artifact | None:
    """Return the newest artifact that was made of the same content of other inputs, if any."""
    content = plan.stage.content
    if content is None:
        return None
    wanted = content(plan.inputs)

    def is_same(other: Artifact) -> bool:
        made = other.record
        reads = plan.reads | {name: made.inputs.get(name, "") for name in plan.inputs}
        if (made.settings, made.code, made.inputs) != (plan.settings, plan.code, reads):
            return False
        try:
            inputs = {name: artifacts.source(other, name) for name in plan.inputs}
            return content(inputs) == wanted
        except UserError:  # what it was made of is gone, or damaged
            return False

    return artifacts.newest(filter(is_same, artifacts.all_of(plan.parent)))


def _with_audit(summary: Summary, inputs: Mapping[str, Artifact]) -> Summary:
    """Add the audit of the data set that the nearest of the inputs knows."""
    known = [artifact.summary(Summary).audit for artifact in reversed([*inputs.values()])]
    audit = next((one for one in known if one is not None), None)
    return replace(summary, audit=audit) if summary.audit is None else summary


def _versions() -> dict[str, str | None]:
    names = ("torch", "monai", "scikit-learn", "numpy", "medvq")
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the commit of the code that runs, ``-dirty`` where changed; None outside git."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def as_line(result: StageResult) -> str:
    """Return the JSON object as one line."""
    return json.dumps(result.to_json(), allow_nan=False, default=float)
