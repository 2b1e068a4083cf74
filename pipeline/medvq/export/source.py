"""What is exported: the artifacts of an encoder and of its probe, put together."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sklearn.pipeline import Pipeline
from torch import Tensor

from medvq.config import Config
from medvq.config_file import load_config
from medvq.errors import UserError
from medvq.export.network import FeatureNetwork, features_of_probe
from medvq.inference import load_encoder, load_probe
from medvq.method.features import TEXTURES
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact
from medvq.storage.probe_encoder import NOT_OF_A_FILE, extract_and_pretrain
from medvq.storage.start import imagenet_encoder

_NOT_OF_THE_NETWORK = NOT_OF_A_FILE | {"hog": "it is OpenCV's"}


@dataclass(frozen=True)
class ExportSource:
    """An encoder, and the probe on its features where there is one.

    Attributes
    ----------
    config : the configuration that both were made with.
    network : prepared images to features, with the trained weights.
    template : (1, 1, height, width), what images are registered to; None where they are not.
    """

    config: Config
    pretrain: Artifact
    ingest: Artifact
    network: FeatureNetwork
    template: Tensor | None
    probe: Pipeline | None
    probe_artifact: Artifact | None

    @classmethod
    def of_probe(cls, folder: Path) -> ExportSource:
        """Read a probe's artifact and the encoder that it was fitted on."""
        probe = load_probe(folder)
        artifact = artifacts.finished(folder, "probe")
        config = artifact.config()
        names = features_of_probe(probe, config.extract.grid)
        _, pretrain = extract_and_pretrain(artifact)
        return cls._made(pretrain, config, names, probe, artifact)

    @classmethod
    def of_encoder(cls, folder: Path, features: Sequence[str]) -> ExportSource:
        """Read the artifact of a pretraining; ``features`` are the sets to return."""
        artifact = artifacts.finished(folder, "pretrain")
        config = artifact.config()
        return cls._made(artifact, config, features or config.probe.features, None, None)

    @classmethod
    def _made(
        cls,
        pretrain: Artifact,
        config: Config,
        names: Sequence[str],
        probe: Pipeline | None,
        probe_artifact: Artifact | None,
    ) -> ExportSource:
        for name in names:
            if name in _NOT_OF_THE_NETWORK:
                raise UserError(
                    f"the feature set '{name}' cannot be exported, since "
                    f"{_NOT_OF_THE_NETWORK[name]}: choose other probe.features"
                )
        encoder = load_encoder(pretrain.folder, device="cpu")
        frozen = not {"frozen_imagenet", TEXTURES["frozen_imagenet"]}.isdisjoint(names)
        network = FeatureNetwork(
            asdict(encoder.model.shape),
            names,
            config.extract.grid,
            config.ingest.image_shape,
            frozen,
        )
        network.model.load_state_dict(encoder.model.state_dict())
        if network.networks.frozen is not None:
            weights = imagenet_encoder(config.ingest.channels).state_dict()
            network.networks.frozen.load_state_dict(weights)
        return cls(
            config,
            pretrain,
            artifacts.source(pretrain, "ingest"),
            network.eval(),
            encoder.template,
            probe,
            probe_artifact,
        )


def export_source(parsed: Namespace) -> ExportSource:
    """Return what the options of a command name: a probe with its encoder, or an encoder alone."""
    if parsed.probe is not None:
        return ExportSource.of_probe(parsed.probe)
    config = load_config(parsed.config)
    if not config.trains:
        raise UserError(
            f"{parsed.config} names another encoder (encoder.file), and MedVQ's own networks alone "
            "are exported"
        )
    folder = parsed.artifacts / config.name / "pretrain" / "latest"
    return ExportSource.of_encoder(folder, parsed.features)
