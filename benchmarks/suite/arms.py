"""Which data sets the suite has, and by which rows each is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import pandas as pd
from medvq.config import Config
from medvq.config.source import FOLDS
from medvq.stages.probe import BASELINES, MEDVQ, of_baselines
from medvq.summaries import ProbeSummary, Validation

from benchmarks.study import Study
from benchmarks.suite.validation import validate
from benchmarks.supervised import RIVALS, network_predictions


@dataclass(frozen=True)
class DataSet:
    """A data set of the suite.

    Attributes
    ----------
    config : name of its configuration.
    fractions : shares of the training subjects whose labels the probe may see.
    settings : what differs from the configuration.
    parts : further settings of each of several runs, whose mean is taken: folds of the images.
    """

    config: str
    fractions: tuple[float, ...] = (0.1, 1.0)
    settings: tuple[str, ...] = ()
    parts: tuple[tuple[str, ...], ...] = ((),)


DATA_SETS = {
    "kermany": DataSet("kermany", (0.01, 0.05, 0.1, 1.0)),
    "kermany-patients": DataSet(
        "kermany",
        (0.01, 0.05, 1.0),
        parts=tuple(("source.split=patients", f"source.fold={fold}") for fold in range(FOLDS)),
    ),
    "pneumoniamnist": DataSet("pneumoniamnist", (0.01, 0.05, 0.1, 1.0)),
    "tuberculosis": DataSet("tuberculosis"),
    "brain-tumour": DataSet("brain-tumour"),
    # The official label subsets are of a fifth of the labels. Its images are ImageNet's.
    "stl10": DataSet("stl10-imagenet", settings=("probe.label_subsets=random",)),
    "hippocampus": DataSet("hippocampus"),
    "phantom": DataSet("phantom"),
}


@dataclass(frozen=True)
class Predicted:
    """What one row predicts.

    Attributes
    ----------
    trainings : of each, for each label subset, the test images in the order of their identity.
    validation : the score that choices are made by; None where the row has none.
    """

    features: str
    trainings: list[list[pd.DataFrame]]
    validation: Validation | None


class Arm(Protocol):
    """Rows that are made together.

    Attributes
    ----------
    is_validated : whether the rows have a validation score.
    """

    is_validated: ClassVar[bool] = True

    def suits(self, config: Config) -> bool:
        """Return whether the rows mean something for a data set."""

    def predict(
        self, study: Study, fraction: float, trainings: int
    ) -> tuple[ProbeSummary, list[Predicted]]:
        """Return the summary of a probe of the cell, and the predictions of the rows.

        Parameters
        ----------
        fraction : of the labels.
        trainings : of each row that would not be the same each time.
        """


@dataclass(frozen=True)
class ProbeArm(Arm):
    """A configuration of the product, and the rows that its probes give.

    Attributes
    ----------
    rows : by name of the row, the feature set of the probe.
    settings : overrides of the data set's configuration.
    is_trained : whether each of several trainings is judged.
    of_pictures : whether it means nothing for volumes.
    """

    rows: Mapping[str, str]
    settings: tuple[str, ...] = ()
    is_trained: bool = False
    of_pictures: bool = False

    def suits(self, config: Config) -> bool:
        return len(config.ingest.image_shape) == 2 or not self.of_pictures

    def config(self, study: Study, fraction: float) -> Config:
        """Return the configuration at a share of the labels.

        Another encoder than MedVQ's may choose the larger values of C that baselines may choose.
        """
        config = study.config(f"probe.label_fraction={fraction}", *self.settings)
        if self.rows.get(MEDVQ) == MEDVQ or MEDVQ not in self.rows.values():
            return config
        return config.model_copy(update={"probe": of_baselines(config.probe)})

    def predict(
        self, study: Study, fraction: float, trainings: int
    ) -> tuple[ProbeSummary, list[Predicted]]:
        config = self.config(study, fraction)
        seeds = range(config.seed, config.seed + (trainings if self.is_trained else 1))
        probes = [study.probe_of_training(config, seed) for seed in seeds]
        present = {row.features for row in probes[0].summary.rows}
        rows = [
            Predicted(
                name,
                [probe.label_subsets(features) for probe in probes],
                validate(probes, features, study.folder),
            )
            for name, features in self.rows.items()
            if features in present
        ]
        return probes[0].summary, rows


@dataclass(frozen=True)
class NetworkArm(Arm):
    """Networks that are trained on the labels, one for each label subset.

    Attributes
    ----------
    networks : names of their rows, see :data:`benchmarks.supervised.RIVALS`.
    """

    is_validated: ClassVar[bool] = False
    networks: tuple[str, ...]

    def suits(self, config: Config) -> bool:
        return len(config.ingest.image_shape) == 2 and config.ingest.channels == 1

    def predict(
        self, study: Study, fraction: float, trainings: int
    ) -> tuple[ProbeSummary, list[Predicted]]:
        probe = study.probe(study.config(f"probe.label_fraction={fraction}"))
        rows = [
            Predicted(
                name,
                [network_predictions(study, probe, name, number) for number in range(trainings)],
                validation=None,
            )
            for name in self.networks
        ]
        return probe.summary, rows


_FROZEN = (
    "pretrain.encoder=efficientnet_lite0",
    "pretrain.start_from=imagenet",
    "pretrain.adapt_statistics=false",
    "pretrain.epochs=0",
    "pretrain.frozen_levels=0",
    "pretrain.widths=null",
    "pretrain.decoder_widths=null",
    "pretrain.finer=[]",
    "pretrain.view_size=null",
    "ingest.image_size=224",
    "ingest.swap.training_copies=0",  # nothing is trained
    "extract.grid=4",
    "extract.frozen_imagenet=true",
    "extract.texture=false",
    "probe.features=[frozen_imagenet]",
)
_AS_THEY_ARE = (
    "ingest.equalise=null",
    "ingest.alignment.enabled=false",
    "ingest.swap.enabled=false",
)
ARMS: dict[str, Arm] = {
    "medvq": ProbeArm({MEDVQ: MEDVQ}, is_trained=True),
    # Of the same probes, which search the larger values of C by themselves.
    # The frozen network has a row of its own, at 224 pixels.
    "baselines": ProbeArm({name: name for name in BASELINES if name != "frozen_imagenet"}),
    "frozen_imagenet": ProbeArm({"frozen_imagenet": MEDVQ}, _FROZEN, of_pictures=True),
    "frozen_imagenet_whole": ProbeArm(
        {"frozen_imagenet_whole": MEDVQ}, (*_FROZEN, *_AS_THEY_ARE), of_pictures=True
    ),
    "networks": NetworkArm(tuple(RIVALS)),
}
"""Groups of rows by name; what the rows are is said on the page (:mod:`benchmarks.suite.page`)."""
