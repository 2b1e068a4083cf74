"""Training of the prior of one level of codes.

Labels are a condition, never a target, and are withheld from a share of the images, so that the
likelihood without a label is exact too. Test images are never read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medvq.config import PriorConfig
from medvq.errors import UserError
from medvq.method.collectives import rank, world_size
from medvq.prior.code_prior import UNKNOWN, CodePrior, Conditions
from medvq.prior.codes import CodeBatch, CodeMaps, level_folder, simple_codings
from medvq.prior.weights import new_prior, save_prior
from medvq.summaries import PriorLevel
from medvq.training.batches import epoch_seed
from medvq.training.loop import Run, TrainingLoop


class PriorOutput(NamedTuple):
    """The mean negative log-likelihood of the codes of a batch, in nats and in bits."""

    loss: Tensor
    bits_per_code: Tensor


class PriorLoss(nn.Module):
    """The negative log-likelihood of codes."""

    def __init__(self, prior: CodePrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, codes: Tensor, conditions: Conditions) -> PriorOutput:
        """Return the mean over all codes."""
        loss = -self.prior.log_likelihood(codes, conditions).mean()
        return PriorOutput(loss, loss / math.log(2))


@dataclass
class CodeBatches:
    """The training batches of an epoch, shuffled anew for every epoch.

    Attributes
    ----------
    codes : those of all training images.
    size : images in a batch at most.
    withheld : how often a label is replaced by :data:`UNKNOWN`.
    seed : of the whole run.
    epoch : which epoch the next iteration is; set by the training loop.
    """

    codes: CodeBatch
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
        """Number of training images."""
        return len(self.codes.codes)

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[CodeBatch]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.images, generator=generator)
        withheld = torch.rand(self.images, generator=generator) < self.withheld
        _, (labels, codes_above) = self.codes
        assert labels is not None
        conditions = Conditions(torch.where(withheld, UNKNOWN, labels), codes_above)
        codes = self.codes._replace(conditions=conditions)
        for number in range(len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            rows = batch[rank() :: world_size()]
            yield codes.map(lambda values, rows=rows: values[rows])


class PriorTraining(TrainingLoop):
    """A training run of the prior of one level.

    Parameters
    ----------
    run : of all levels; files and metrics of the finer ones get the level's number.
    """

    section = "prior"
    activity = "training the prior"
    terms = ("loss", "bits_per_code")
    batches: CodeBatches
    objective: PriorLoss

    def __init__(self, maps: CodeMaps, level: int, config: PriorConfig, run: Run) -> None:
        self.maps, self.level = maps, level
        self.validation = torch.from_numpy(maps.rows("validation", config.only_class))
        train = maps.batch(level, maps.rows("train", config.only_class))
        batches = CodeBatches(train, config.batch_size, config.withheld_labels, run.seed)
        if batches.batch_size % world_size():
            raise UserError(
                f"a batch of {batches.batch_size} images cannot be shared by NPROC={world_size()} "
                "processes; set prior.batch_size to a multiple"
            )
        torch.manual_seed(run.seed)
        prior = new_prior(maps, level, config)
        prior.set_base_rates(train.codes)
        objective = PriorLoss(prior).to(run.device)
        super().__init__(_run_of_level(run, level), config, objective, batches, unused=True)

    def load(self) -> Iterable[Mapping[str, object]]:
        """Yield the training batches of an epoch."""
        for batch in self.batches:
            yield batch.map(self._send)._asdict()

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Measure the validation images without and with their labels."""
        self.objective.eval()
        prior, parts = self.objective.prior, []
        for rows in self.validation.split(self.batches.size):
            codes, labelled = self.maps.batch(self.level, rows).map(self._send)
            unlabelled = labelled._replace(labels=None)
            likelihoods = [prior.log_likelihood(codes, c) for c in (unlabelled, labelled)]
            parts.append(torch.stack([-values.flatten(1).mean(1) for values in likelihoods]))
        nats = torch.cat(parts, 1)
        loss, loss_labelled = (nats.sum(1) / nats.shape[1]).tolist()
        return {
            "val_loss": loss,
            "val_bits_per_code": loss / math.log(2),
            "val_bits_per_code_labelled": loss_labelled / math.log(2),
        }

    def save_best(self) -> None:
        """Write the weights."""
        save_prior(self.objective.prior, self.maps.codebook, self.run.folder)

    def summary(self) -> PriorLevel:
        """Return the figures of the best epoch, and of codings without a network."""
        train = self.batches.codes.codes.flatten(1).numpy()
        validation = self.maps.levels[self.level][self.validation].flatten(1).numpy()
        return PriorLevel(
            model=self.objective.prior.name,
            epochs=len(self.history),
            best_epoch=int(self.best["epoch"]),
            images=self.batches.images,
            codes_per_image=train.shape[1],
            parameters=sum(p.numel() for p in self.objective.parameters()),
            val_bits_per_code=self.best["val_bits_per_code"],
            val_bits_per_code_labelled=self.best["val_bits_per_code_labelled"],
            val_bits_of_simple_codings=simple_codings(
                train, validation, validation, self.maps.sizes[self.level]
            ),
        )

    def _send(self, values: Tensor) -> Tensor:
        return values.to(self.run.device)


def _run_of_level(run: Run, level: int) -> Run:
    """Return a run with the level's own folder and names of metrics."""
    folder = level_folder(run.folder, level)
    folder.mkdir(exist_ok=True)
    suffix = f"_{level}" if level else ""

    def report(metrics: dict[str, float], epoch: int) -> None:
        run.report({f"{name}{suffix}": value for name, value in metrics.items()}, epoch)

    return replace(run, folder=folder, report=report)
