"""The stage ``prior``: a distribution over the code maps of the training images.

Of several levels of codes each has a prior of its own, those but the coarsest conditioned on the
codes of the level above.

Labels are given to it as a condition, never as something to predict, and are withheld from a share
of the images, so that its likelihood without a label is exact too. Test images are never read.

Writes into its artifact:

=====================  ========================================================================
``prior.safetensors``  the weights of the best epoch, see :func:`load_prior`
``typicality.json``    what is typical of the validation images, see :mod:`medvq.prior.typicality`
``history.csv``        one row per epoch: bits per code in training and validation
``checkpoint.pt``      the last epoch, to go on from
``level_1/``           the same of the next finer level of codes, and so on, where there are more
=====================  ========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medvq.config import PriorConfig
from medvq.errors import UserError
from medvq.method.collectives import rank, world_size
from medvq.prior.code_prior import UNKNOWN, CodePrior
from medvq.prior.codes import CodeMaps, level_folder, read_codes, simple_codings
from medvq.prior.pixelcnn import GatedPixelCNN
from medvq.prior.transformer import TransformerPrior
from medvq.prior.typicality import TypicalityCheck, surprise
from medvq.storage.artifacts import StageContext
from medvq.storage.weights import read_shape, save_network
from medvq.training.batches import epoch_seed
from medvq.training.loop import Run, TrainingLoop

PRIOR = "prior.safetensors"
_MODELS: dict[str, type[CodePrior]] = {"pixelcnn": GatedPixelCNN, "transformer": TransformerPrior}


def prior(context: StageContext) -> dict[str, Any]:
    """Run the stage; return its summary: that of the coarsest level, and a list of the others."""
    maps = read_codes(context.inputs["extract"])
    found = [_PriorTraining(context, maps, level).result() for level in range(len(maps.levels))]
    if rank() > 0:
        return {}
    gate = _calibrated(context, maps)
    gate.write(context.folder)
    coarsest, *finer = found
    bits = sum(level["val_bits_per_code"] * level["codes_per_image"] for level in found)
    summary = {**coarsest, "finer": finer, "val_bits_per_image": bits}
    return summary | {"typicality_threshold": gate.threshold}


def _calibrated(context: StageContext, maps: CodeMaps) -> TypicalityCheck:
    """The gate of the coarsest codes and of the weights that were kept."""
    best = load_prior(context.folder / PRIOR, maps.codebook).to(context.device)
    validation = maps.rows("validation", context.config.prior.only_class)
    return TypicalityCheck.calibrate(surprise(best, maps.codes[validation]))


def architecture(config: PriorConfig, maps: CodeMaps, level: int) -> dict[str, Any]:
    """What :func:`build` needs for a prior of the codes of a level."""
    model = config.finer_model if level else config.model
    above = [maps.sizes[level - 1], list(maps.levels[level - 1].shape[1:])] if level else None
    own = {"pixelcnn": {"reach": config.reach}, "transformer": {"heads": config.heads}}
    return {
        "model": model,
        "codebook": maps.codebook,
        "size": maps.sizes[level],
        "shape": list(maps.levels[level].shape[1:]),
        "classes": len(maps.classes),
        "above": above,
        "channels": config.channels,
        "depth": config.depth,
        "dropout": config.dropout,
        **own[model],
    }


def build(shape: dict[str, Any]) -> CodePrior:
    """A new prior of an :func:`architecture`."""
    arguments = {k: v for k, v in shape.items() if k not in ("model", "codebook")}
    return _MODELS[shape["model"]](**arguments)


def load_prior(file: Path, codebook: str) -> CodePrior:
    """The prior of ``file``, in eval mode.

    Raises
    ------
    UserError
        The file is missing or damaged, or the prior is of the codes of another model than
        ``codebook``, a fingerprint.
    """
    try:
        shape = read_shape(file)
        network = build(shape)
        network.load_state_dict(load_file(file))
    except FileNotFoundError as error:
        raise UserError(f"no prior {file}; run 'prior' first") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{file} does not hold a prior of this version; run 'prior' with FORCE=1"
        ) from error
    if shape["codebook"] != codebook:
        raise UserError(
            f"{file} is a prior of the codes of model {shape['codebook']}, and these codes are of "
            f"model {codebook}; run 'prior' for them"
        )
    return network.eval()


def load_priors(folder: Path, maps: CodeMaps) -> list[CodePrior]:
    """The priors of an artifact, one for each level of codes; raises as :func:`load_prior`."""
    return [
        load_prior(level_folder(folder, level) / PRIOR, maps.codebook)
        for level in range(len(maps.levels))
    ]


class PriorOutput(NamedTuple):
    """The loss of a batch in nats and in bits per code."""

    loss: Tensor
    bits_per_code: Tensor


class Objective(nn.Module):
    """The loss of a prior: nats per code."""

    def __init__(self, prior: CodePrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, codes: Tensor, labels: Tensor, above: Tensor | None = None) -> PriorOutput:
        """Return the mean over all codes, in nats and in bits."""
        loss = -self.prior.log_likelihood(codes, labels, above).mean()
        return PriorOutput(loss, loss / math.log(2))


@dataclass
class CodeBatches:
    """One epoch of training batches, anew at every iteration over it.

    Attributes
    ----------
    given : of the training images, see :meth:`CodeMaps.given`.
    size : images in a batch.
    withheld : how often a label is replaced by :data:`UNKNOWN`.
    seed : of the whole run.
    epoch : which epoch the next iteration is; set by the trainer.
    """

    given: dict[str, Tensor]
    size: int
    withheld: float
    seed: int
    epoch: int = 0

    @property
    def batch_size(self) -> int:
        """Images in a batch, of all processes together."""
        return min(self.size, self.images)

    @property
    def images(self) -> int:
        """Of an epoch."""
        return len(self.given["codes"])

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.images, generator=generator)
        kept = torch.rand(self.images, generator=generator) >= self.withheld
        for number in range(len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            own = chosen[rank() :: world_size()]
            batch = {name: values[own] for name, values in self.given.items()}
            yield batch | {"labels": torch.where(kept[own], batch["labels"], UNKNOWN)}


class _PriorTraining(TrainingLoop):
    """What is trained, on which codes, and how it is judged."""

    section = "prior"
    activity = "training the prior"
    terms = ("loss", "bits_per_code")
    batches: CodeBatches
    objective: Objective

    def __init__(self, context: StageContext, maps: CodeMaps, level: int) -> None:
        config, seed = context.config.prior, context.config.seed
        self.maps, self.level = maps, level
        self.validation = maps.rows("validation", config.only_class)
        train = maps.given(level, maps.rows("train", config.only_class))
        batches = CodeBatches(train, config.batch_size, config.withheld_labels, seed)
        if batches.batch_size % world_size():
            raise UserError(
                f"a batch of {batches.batch_size} images cannot be shared by NPROC={world_size()} "
                "processes; set prior.batch_size to a multiple"
            )
        self.shape = architecture(config, maps, level)
        torch.manual_seed(seed)
        network = build(self.shape)
        network.start_from(train["codes"])
        surroundings = _run_of_level(context, level)
        objective = Objective(network).to(surroundings.device)
        super().__init__(surroundings, config, objective, batches, unused=True)

    def result(self) -> dict[str, Any]:
        """Train; return the summary of the level."""
        self.fit()
        if rank() > 0:
            return {}
        train = self.batches.given["codes"].flatten(1).numpy()
        validation = self.maps.levels[self.level][self.validation].flatten(1).numpy()
        bits = simple_codings(train, validation, validation, self.maps.sizes[self.level])
        return {
            "model": self.shape["model"],
            "epochs": len(self.history),
            "best_epoch": int(self.best["epoch"]),
            "images": self.batches.images,
            "codes_per_image": train.shape[1],
            "parameters": sum(p.numel() for p in self.objective.parameters()),
            "val_bits_per_code": self.best["val_bits_per_code"],
            "val_bits_per_code_labelled": self.best["val_bits_per_code_labelled"],
            "val_bits_of_simple_codings": bits,
        }

    def load(self) -> Iterable[dict[str, Tensor]]:
        """Yield the training batches of an epoch."""
        for batch in self.batches:
            yield {name: value.to(self.run.device) for name, value in batch.items()}

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Measure the validation images without and with their labels."""
        self.objective.eval()
        prior, parts = self.objective.prior, []
        for rows in torch.from_numpy(self.validation).split(self.batches.size):
            given = self.maps.given(self.level, rows)
            given = {name: values.to(self.run.device) for name, values in given.items()}
            unlabelled = given | {"labels": torch.full_like(given["labels"], UNKNOWN)}
            parts.append(
                torch.stack(
                    [-prior.log_likelihood(**g).flatten(1).mean(1) for g in (unlabelled, given)]
                )
            )
        every = torch.cat(parts, 1)
        loss, labelled = (every.sum(1) / every.shape[1]).tolist()
        return {
            "val_loss": loss,
            "val_bits_per_code": loss / math.log(2),
            "val_bits_per_code_labelled": labelled / math.log(2),
        }

    def save_best(self) -> None:
        """Write the weights."""
        save_network(self.objective.prior, self.shape, self.run.folder / PRIOR)


def _run_of_level(context: StageContext, level: int) -> Run:
    """Return a run with a folder and names of metrics of the level's own."""
    folder = level_folder(context.folder, level)
    folder.mkdir(exist_ok=True)
    suffix = f"_{level}" if level else ""

    def report(metrics: dict[str, float], step: int) -> None:
        context.report({f"{name}{suffix}": value for name, value in metrics.items()}, step)

    return Run(folder, context.config.seed, torch.device(context.device), report)
