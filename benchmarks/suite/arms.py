"""Which data sets the suite has, and by which rows each is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medvq.config import Config
from medvq.stages.probe import BASELINES, MEDVQ, with_larger_c

from benchmarks.study import Probed, Study


@dataclass(frozen=True)
class DataSet:
    """A data set of the suite.

    Attributes
    ----------
    config : name of its configuration.
    fractions : shares of the training subjects whose labels the probe may see.
    settings : what differs from the configuration.
    """

    config: str
    fractions: tuple[float, ...] = (0.1, 1.0)
    settings: tuple[str, ...] = ()


DATA_SETS = {
    "kermany": DataSet("kermany", (0.01, 0.05, 0.1, 1.0)),
    "pneumoniamnist": DataSet("pneumoniamnist"),
    "tuberculosis": DataSet("tuberculosis"),
    "brain-tumour": DataSet("brain-tumour"),
    # The official label subsets are of a fifth of the labels.
    "stl10": DataSet("stl10", settings=("probe.label_subsets=random",)),
    "hippocampus": DataSet("hippocampus"),
    "phantom": DataSet("phantom"),
}


@dataclass(frozen=True)
class Arm:
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
        """Return whether the rows mean something for a data set."""
        return len(config.ingest.image_shape) == 2 or not self.of_pictures

    def config(self, study: Study, fraction: float) -> Config:
        """Return the configuration at a share of the labels.

        Another encoder than MedVQ's may choose the larger values of C that baselines may choose.
        """
        config = study.config(f"probe.label_fraction={fraction}", *self.settings)
        if self.rows.get(MEDVQ) == MEDVQ or MEDVQ not in self.rows.values():
            return config
        return config.model_copy(update={"probe": with_larger_c(config.probe)})

    def probes(self, study: Study, fraction: float, trainings: int) -> list[Probed]:
        """Return the probe of each training; of one where all would be the same."""
        config = self.config(study, fraction)
        seeds = range(config.seed, config.seed + (trainings if self.is_trained else 1))
        return [study.probe_of_training(config, seed) for seed in seeds]


_FROZEN = (
    "pretrain.encoder=efficientnet_lite0",
    "pretrain.start_from=imagenet",
    "pretrain.epochs=0",
    "pretrain.frozen_levels=0",
    "pretrain.widths=null",
    "pretrain.decoder_widths=null",
    "pretrain.finer=[]",
    "pretrain.view_size=null",
    "ingest.image_size=224",
    "extract.grid=4",
    "probe.features=[embedding]",
)
_AS_THEY_ARE = (
    "ingest.equalise=null",
    "ingest.alignment.enabled=false",
    "ingest.swap.enabled=false",
)
ARMS = {
    "medvq": Arm({MEDVQ: MEDVQ}, is_trained=True),
    # Of the same probes, which search the larger values of C by themselves.
    "baselines": Arm({name: name for name in BASELINES}),
    "frozen_imagenet": Arm({"frozen_imagenet": MEDVQ}, _FROZEN, of_pictures=True),
    "frozen_imagenet_whole": Arm(
        {"frozen_imagenet_whole": MEDVQ}, (*_FROZEN, *_AS_THEY_ARE), of_pictures=True
    ),
}
"""Groups of rows by name; what the rows are is said on the page (:mod:`benchmarks.suite.page`)."""
