"""The stage ``prior``: a distribution over the code maps of the training images.

Labels are given to it as a condition, never as something to predict, and are withheld from a share
of the images, so that its likelihood without a label is exact too. Test images are never read.

Writes into its artifact:

=====================  ========================================================================
``prior.safetensors``  the weights of the best epoch, see :func:`load_prior`
``gate.json``          what is typical of the validation images, see :mod:`pipeline.prior.gate`
``history.csv``        one row per epoch: bits per code in training and validation
``checkpoint.pt``      the last epoch, to go on from
=====================  ========================================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler
from monai.metrics import LossMetric
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config import PriorConfig
from pipeline.errors import UserError
from pipeline.models.code_prior import UNKNOWN, CodePrior
from pipeline.models.collective import rank, world
from pipeline.models.pixelcnn import GatedPixelCNN
from pipeline.models.transformer_prior import TransformerPrior
from pipeline.prior.codes import CodeMaps, read_codes, simple_codings
from pipeline.prior.gate import Gate, surprise
from pipeline.stage import Work
from pipeline.training.batches import epoch_seed
from pipeline.training.loop import Loop, Reiterable
from pipeline.training.weights import save_model

PRIOR = "prior.safetensors"
_MODELS: dict[str, type[CodePrior]] = {"pixelcnn": GatedPixelCNN, "transformer": TransformerPrior}


def prior(work: Work) -> dict[str, Any]:
    """Run the stage; return its summary."""
    return _PriorTraining(work).run()


def architecture(config: PriorConfig, maps: CodeMaps) -> dict[str, Any]:
    """What :func:`build` needs for a prior of these codes."""
    own = {"pixelcnn": {"reach": config.reach}, "transformer": {"heads": config.heads}}
    return {
        "model": config.model,
        "codebook": maps.codebook,
        "size": maps.size,
        "shape": list(maps.codes.shape[1:]),
        "classes": len(maps.classes),
        "channels": config.channels,
        "depth": config.depth,
        "dropout": config.dropout,
        **own[config.model],
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
        with safe_open(file, framework="pt") as opened:
            shape = json.loads((opened.metadata() or {})["architecture"])
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


class Objective(nn.Module):
    """The loss of a prior: nats per code."""

    def __init__(self, prior: CodePrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, codes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The mean over all codes, in nats and in bits."""
        loss = -self.prior.log_likelihood(codes, labels).mean()
        return {"loss": loss, "bits_per_code": loss / math.log(2)}


@dataclass
class CodeBatches:
    """One epoch of training batches, anew at every iteration over it.

    Attributes
    ----------
    codes, labels : of the training images.
    size : images in a batch.
    withheld : how often a label is replaced by :data:`UNKNOWN`.
    seed : of the whole run.
    epoch : which epoch the next iteration is; set by the trainer.
    """

    codes: Tensor
    labels: Tensor
    size: int
    withheld: float
    seed: int
    epoch: int = 0

    @property
    def batch_size(self) -> int:
        """Images in a batch, of all processes together."""
        return min(self.size, len(self.codes))

    def __len__(self) -> int:
        return len(self.codes) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.codes), generator=generator)
        kept = torch.rand(len(self.codes), generator=generator) >= self.withheld
        for number in range(len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            own = chosen[rank() :: world()]
            labels = torch.where(kept[own], self.labels[own], UNKNOWN)
            yield {"codes": self.codes[own], "labels": labels}


class _PriorTraining(Loop):
    """What is trained, on which codes, and how it is judged."""

    section = "prior"
    doing = "training the prior"
    losses = ("loss", "bits_per_code")
    batches: CodeBatches

    def __init__(self, work: Work) -> None:
        config = work.config.prior
        super().__init__(work, config)
        self.maps = read_codes(work.inputs["extract"])
        train = self.maps.rows("train", config.only_class)
        self.validation = self.maps.rows("validation", config.only_class)
        self.batches = CodeBatches(
            self.maps.codes[train],
            self.maps.labels[train],
            config.batch_size,
            config.withheld_labels,
            work.config.seed,
        )
        if self.batches.batch_size % world():
            raise UserError(
                f"a batch of {self.batches.batch_size} images cannot be shared by NPROC={world()} "
                "processes; set prior.batch_size to a multiple"
            )
        self.shape = architecture(config, self.maps)
        torch.manual_seed(work.config.seed)
        network = build(self.shape)
        network.start_from(self.maps.codes[train])
        self.objective = Objective(network).to(self.device)
        self._prepare(self.objective, unused=True)

    def run(self) -> dict[str, Any]:
        self.fit()
        if rank() > 0:
            return {}
        parts = [
            self.maps.codes[rows].flatten(1).numpy()
            for rows in (
                self.maps.rows("train", self.work.config.prior.only_class),
                self.validation,
                self.validation,
            )
        ]
        bits = simple_codings(parts[0], parts[1], parts[2], self.maps.size)
        gate = self._gate()
        gate.write(self.work.folder)
        return {
            "epochs": len(self.history),
            "best_epoch": int(self.best["epoch"]),
            "images": len(self.batches.codes),
            "parameters": sum(p.numel() for p in self.objective.parameters()),
            "val_bits_per_code": self.best["val_bits_per_code"],
            "val_bits_per_code_labelled": self.best["val_bits_per_code_labelled"],
            "val_bits_of_simple_codings": bits,
            "gate_threshold": gate.threshold,
        }

    def _gate(self) -> Gate:
        """Of the best epoch's weights, which are those that are kept."""
        best = load_prior(self.work.folder / PRIOR, self.maps.codebook).to(self.device)
        return Gate.calibrate(surprise(best, self.maps.codes[self.validation]))

    def _loaded(self) -> Iterable[dict[str, Tensor]]:
        for batch in self.batches:
            yield {name: value.to(self.device) for name, value in batch.items()}

    def _evaluator(self) -> SupervisedEvaluator:
        def step(_: Engine, rows: Tensor) -> dict[str, Tensor]:
            self.objective.eval()
            codes, labels = (
                values[rows].to(self.device) for values in (self.maps.codes, self.maps.labels)
            )
            with torch.inference_mode():
                return {
                    "loss": -self.objective.prior.log_likelihood(codes).flatten(1),
                    "labelled": -self.objective.prior.log_likelihood(codes, labels).flatten(1),
                }

        def mean_of(name: str) -> IgniteMetricHandler:
            return IgniteMetricHandler(
                LossMetric(loss_fn=lambda values, _: values.mean(1, keepdim=True)),
                output_transform=lambda output: (output[name], output[name]),
                save_details=False,
            )

        batches = torch.from_numpy(self.validation).split(self.batches.size)
        return SupervisedEvaluator(
            device=self.device,
            val_data_loader=Reiterable(lambda: batches),
            network=self.objective,
            iteration_update=step,
            decollate=False,
            key_val_metric={"loss": mean_of("loss")},
            additional_metrics={"labelled": mean_of("labelled")},
        )

    def _measures(self, measured: dict[str, float]) -> dict[str, float]:
        return {
            "val_loss": measured["loss"],
            "val_bits_per_code": measured["loss"] / math.log(2),
            "val_bits_per_code_labelled": measured["labelled"] / math.log(2),
        }

    def _keep(self) -> None:
        save_model(self.objective.prior, self.shape, self.work.folder / PRIOR)
