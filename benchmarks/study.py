"""What studies of a data set share: their command line, the stages that they run, their page.

A study runs stages as the command line does, so that what is up to date is not run again and an
interrupted study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

import pandas as pd
from medvq.cli import add_options, status
from medvq.config import Config
from medvq.config_file import config_file, load_config
from medvq.flow import commit, run
from medvq.stages.stage import InputArtifacts, RunOptions
from medvq.storage.artifacts import Artifact
from medvq.storage.tracking import Tracking
from medvq.summaries import ProbeSummary
from medvq.tracked_runs import TrackedRun

from benchmarks.page import RESULTS, Figure, Section, write_page


@dataclass(frozen=True)
class Probed:
    """A probe and its predictions, a row per test image, feature set and label subset."""

    config: Config
    artifact: Artifact
    summary: ProbeSummary
    predictions: pd.DataFrame

    def label_subsets(self, features: str) -> list[pd.DataFrame]:
        """Return the predictions of a feature set for each label subset, ordered by image."""
        chosen = self.predictions[self.predictions["features"] == features]
        return [subset.sort_values("image_id") for _, subset in chosen.groupby("label_subset")]


@dataclass(frozen=True)
class Study:
    """A study of one data set, as the command line asked for it.

    Attributes
    ----------
    name, target : of its page and of its run in MLflow; the make target that runs it.
    config_name, settings : the configuration, and the user's overrides of it.
    results : the folder of its page.
    commit : of the code when the study began: its page would make it a changed one.
    """

    name: str
    target: str
    config_name: str
    settings: tuple[str, ...]
    options: RunOptions
    results: Path = RESULTS
    json: bool = False
    commit: str | None = field(default_factory=commit)

    @property
    def shown_settings(self) -> str:
        """The user's settings as ``make`` takes them, after a space."""
        return f" SET={shlex.quote(' '.join(self.settings))}" if self.settings else ""

    def config(self, *settings: str) -> Config:
        """Return the configuration that was asked for, with further overrides on top."""
        return load_config(config_file(self.config_name), (*self.settings, *settings))

    def run(self, stage: str, config: Config, inputs: InputArtifacts | None = None) -> Artifact:
        """Return the artifact of a stage, which is run where it is not up to date."""
        return run(stage, config, self.options, inputs).artifact

    def probe(self, config: Config, inputs: InputArtifacts | None = None) -> Probed:
        """Run the probe where it is not up to date, and read its predictions."""
        artifact = self.run("probe", config, inputs)
        predictions = pd.read_parquet(artifact.folder / "predictions.parquet")
        return Probed(config, artifact, artifact.summary(ProbeSummary), predictions)

    def probe_of_training(self, config: Config, seed: int) -> Probed:
        """Probe the features of a training from another seed, and read its predictions.

        Splits, random versions and label subsets stay those of ``config.seed``, so that trainings
        are crossed with label subsets and test subjects.
        """
        ingest = self.run("ingest", config)
        training = config.model_copy(update={"seed": seed})
        pretrain = self.run("pretrain", training, {"pretrain": {"ingest": ingest}})
        inputs = {"extract": {"ingest": ingest, "pretrain": pretrain}}
        extract = self.run("extract", config, inputs)
        return self.probe(config, {"probe": {"extract": extract}})

    def file(self, suffix: str) -> Path:
        """Return the page (``.md``) or the picture (``.png``) of the study."""
        self.results.mkdir(parents=True, exist_ok=True)
        return self.results / f"{self.name}-{self.config().name}{suffix}"

    @property
    def folder(self) -> Path:
        """A folder beside the artifacts, for what the study keeps."""
        folder = self.options.artifacts / self.config().name / f"study-{self.name}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def publish(
        self, title: str, introduction: str, sections: Sequence[Section], figures: Sequence[Figure]
    ) -> None:
        """Write the page, log the figures as an MLflow run, print them where ``--json`` asks."""
        config, page, picture = self.config(), self.file(".md"), self.file(".png")
        write_page(
            page,
            title=f"{title}: {config.name}",
            command=f"make {self.target} DATASET={self.config_name}{self.shown_settings}",
            commit=self.commit,
            introduction=introduction,
            sections=sections,
            picture=picture.name if picture.exists() else "",
        )
        name, code = self.folder.name, self.commit or ""
        tracking = Tracking(
            self.options.artifacts, self.folder, config, name, code, {}, self.commit
        )
        with tracking:
            tracking.start("", {"seed": config.seed, "settings": list(self.settings)})
            metrics = {row.figure: row.value for row in figures}
            tracking.finish([TrackedRun(metrics)], self.folder)
        print(page)
        if self.json:
            print(json.dumps({"rows": [asdict(row) for row in figures]}, allow_nan=False))


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a parser of a list of names, separated by commas."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


def run_study(
    name: str,
    target: str,
    main: Callable[[Study, argparse.Namespace], None],
    groups: Sequence[str] = (),
    add_more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> NoReturn:
    """Run a study and end as the stages' commands do: what a user can mend is one line.

    Parameters
    ----------
    groups : parts of the study that ``--only`` can ask for.
    add_more : adds options of the study's own.
    """
    module = name.replace("-", "_")
    parser = argparse.ArgumentParser(f"python -m benchmarks.{module}", description=main.__doc__)
    add_options(parser)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--json", action="store_true", help="figures as JSON on the last line")
    if groups:
        parser.add_argument("--only", choices=groups, help="one part of the study alone")
    if add_more is not None:
        add_more(parser)
    parsed = parser.parse_args()
    places = (parsed.data_root, parsed.data_mirror, parsed.artifacts)
    options = RunOptions(*places, device=parsed.device, accept_code=parsed.accept_code)

    def command() -> int:
        settings = tuple(parsed.set)
        study = Study(name, target, parsed.config, settings, options, parsed.results, parsed.json)
        main(study, parsed)
        return 0

    sys.exit(status(command, parsed.artifacts))
