"""The models of the codes that there are."""

from __future__ import annotations

from medvq.storage import artifacts
from medvq.storage.artifacts import Artifact


def find_prior(extract: Artifact) -> Artifact | None:
    """Return the newest prior of the codes of an extraction, of all classes; None without one."""
    return artifacts.newest(
        one
        for one in artifacts.all_of(extract.folder.resolve().parents[1] / "prior")
        if one.record.inputs["extract"] == extract.fingerprint
        and one.config().prior.only_class is None
    )
