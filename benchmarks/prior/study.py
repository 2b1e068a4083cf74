"""What the studies of a prior share: the artifacts that they read, and the rows that they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvq.config import Config
from medvq.config_file import config_file, load_config
from medvq.flow import Options, run
from medvq.method.vqvae import VQVAE
from medvq.prior.code_prior import CodePrior
from medvq.prior.codes import CodeMaps, read_codes
from medvq.stages.prior import load_priors
from medvq.storage.artifacts import find
from medvq.storage.weights import FILE, load_model


@dataclass(frozen=True)
class Row:
    """One figure, and what it is to reach, where anything."""

    figure: str
    value: float
    must_reach: float | None = None
    lower_is_better: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As ``JSON=1`` prints it."""
        return {**vars(self), "value": round(self.value, 4)}


@dataclass(frozen=True)
class Study:
    """The configuration, and the artifacts that all figures are made of."""

    config: Config
    overrides: tuple[str, ...]
    name: str
    options: Options

    def priors(self, *overrides: str) -> tuple[list[CodePrior], dict[str, Any]]:
        """Trained priors of all levels of codes, coarsest first, and their stage's result."""
        config = load_config(config_file(self.name), (*self.overrides, *overrides))
        result = run("prior", config, self.options)
        return load_priors(Path(result["artifact"]), self.maps), result

    def prior(self, *overrides: str) -> tuple[CodePrior, dict[str, Any]]:
        """The same of the coarsest codes alone."""
        priors, result = self.priors(*overrides)
        return priors[0], result

    @property
    def ingest(self) -> Path:
        """The folder of the cache."""
        return Path(run("ingest", self.config, self.options)["artifact"])

    @property
    def extract(self) -> Path:
        """The folder of the feature store."""
        return Path(run("extract", self.config, self.options)["artifact"])

    @property
    def maps(self) -> CodeMaps:
        """The codes of all images."""
        artifact = find(self.extract)
        assert artifact is not None
        return read_codes(artifact)

    @property
    def model(self) -> VQVAE:
        """The trained VQ-VAE."""
        return load_model(Path(run("pretrain", self.config, self.options)["artifact"]) / FILE)
