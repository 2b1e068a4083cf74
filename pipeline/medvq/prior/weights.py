"""Trained priors on disk: weights, with the architecture and the codebook in the header."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from medvq.config import PriorConfig
from medvq.errors import UserError
from medvq.prior.code_prior import CodePrior, PriorArchitecture
from medvq.prior.codes import CodeMaps, level_folder
from medvq.storage.weights import load_network, save_network

FILE = "prior.safetensors"


def _models() -> dict[str, type[CodePrior]]:
    """Return the models of the codes by name."""
    # Two have layers of MONAI's, whose import takes longer than many commands do without it.
    from medvq.prior.masked import MaskedPrior
    from medvq.prior.pixelcnn import GatedPixelCNN
    from medvq.prior.transformer import TransformerPrior

    return {model.name: model for model in (GatedPixelCNN, TransformerPrior, MaskedPrior)}


def new_prior(maps: CodeMaps, level: int, config: PriorConfig) -> CodePrior:
    """Return an untrained prior of the codes of a level."""
    shapes = [tuple(codes.shape[1:]) for codes in maps.levels]
    architecture = PriorArchitecture(
        size=maps.sizes[level],
        shape=shapes[level],
        classes=len(maps.classes),
        above=(maps.sizes[level - 1], shapes[level - 1]) if level else None,
        channels=config.channels,
        depth=config.depth,
        dropout=config.dropout,
        reach=config.reach,
        heads=config.heads,
    )
    return _models()[config.finer_model if level else config.model](architecture)


def save_prior(prior: CodePrior, codebook: str, folder: Path) -> None:
    """Write a prior of the codes of the model ``codebook``, a fingerprint, into ``folder``."""
    header = {"model": prior.name, "codebook": codebook, **asdict(prior.architecture)}
    save_network(prior, header, folder / FILE)


def load_prior(folder: Path, codebook: str) -> CodePrior:
    """Return the prior in ``folder``, in eval mode.

    Raises
    ------
    UserError
        The file is missing or damaged, or the prior is of the codes of another model than
        ``codebook``, a fingerprint.
    """
    file = folder / FILE
    header, tensors = load_network(file, "prior")
    try:
        model, known = _models()[header.pop("model")], header.pop("codebook")
        prior = model(TypeAdapter(PriorArchitecture).validate_python(header))
        prior.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{file} does not hold a prior of this version; run 'prior' with FORCE=1"
        ) from error
    if known != codebook:
        raise UserError(
            f"{file} is a prior of the codes of model {known}, and these codes are of model "
            f"{codebook}; run 'prior' for them"
        )
    return prior.eval()


def load_priors(folder: Path, maps: CodeMaps) -> list[CodePrior]:
    """Return the priors of an artifact, one for each level; raises as :func:`load_prior`."""
    levels = range(len(maps.levels))
    return [load_prior(level_folder(folder, level), maps.codebook) for level in levels]
