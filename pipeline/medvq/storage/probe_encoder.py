"""The encoder of a probe, where it computes of the file of an image all that the probe reads."""

from __future__ import annotations

from medvq.errors import UserError
from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact

NOT_OF_A_FILE = {
    "external": "it is another encoder's, which load_encoder and load_probe apply in Python",
    "border_only": "it is of images before they are registered",
    "images_per_subject": "it is no property of an image",
}
"""Feature sets that MedVQ's network does not compute of the file of an image, and why."""


def extract_and_pretrain(probe: Artifact) -> tuple[Artifact, Artifact]:
    """Return the artifacts of the features that a probe was fitted on, and of their network.

    Raises
    ------
    UserError
        One is missing, or the probe reads a feature set that the network does not compute.
    """
    extract = artifacts.source(probe, "extract")
    pretrain = artifacts.source(extract, "pretrain")
    for name in probe.config().probe.features:
        if name in NOT_OF_A_FILE:
            raise UserError(
                f"{probe.folder} reads the feature set '{name}' and cannot be used here, since "
                f"{NOT_OF_A_FILE[name]}: choose other probe.features"
            )
    return extract, pretrain
