"""The models of the codes that there are."""

from __future__ import annotations

from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact


def find_prior(extract: Artifact) -> Artifact | None:
    """Return the newest prior of the codes of an extraction, of all classes; None without one."""
    folders = sorted((extract.folder.resolve().parents[1] / "prior").glob("[0-9a-f]*"))
    found = [artifacts.find(folder) for folder in folders if not folder.suffix]
    priors = [
        one
        for one in found
        if one is not None
        and one.record.inputs["extract"] == extract.fingerprint
        and one.config().prior.only_class is None
    ]
    return max(priors, key=lambda one: one.record.finished, default=None)
