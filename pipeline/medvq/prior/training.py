"""Training of the prior of one level of codes.

Labels are a condition, never a target, and are withheld from a share of the images, so that the
likelihood without a label is exact too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

_SHARE_ALONE = 0.3
"""Of the epochs, the last, in which images are learnt from without their versions: these are moved
and recoloured more than images differ, and samples would be, too."""


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
        """Return the mean over the codes that the prior learns from."""
        loss = self.prior.training_loss(codes, conditions)
        return PriorOutput(loss, loss / math.log(2))


@dataclass
class CodeBatches:
    """The training batches of an epoch, in an order of its own.

    Attributes
    ----------
    codes : those of all training images.
    versions : the same of random versions of them, of which each epoch draws one or the image.
    alone : the epoch from which on the images are alone.
    size : images in a batch at most.
    withheld : how often a label is replaced by :data:`UNKNOWN`.
    epoch, first : the epoch of the next iteration, and the number of its first batch; set by the
        training loop.
    """

    codes: CodeBatch
    versions: Sequence[CodeBatch]
    alone: int
    size: int
    withheld: float
    seed: int
    device: torch.device
    epoch: int = 0
    first: int = 0

    @property
    def images(self) -> int:
        """Number of training images."""
        return len(self.codes.codes)

    @property
    def batch_size(self) -> int:
        """Images in a batch, of all processes together."""
        return min(self.size, self.images)

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[CodeBatch]:
        generator = self._generator()
        batches = self._own_rows(generator)
        withheld = torch.rand(self.images, generator=generator) < self.withheld
        codes = self._drawn(generator)
        conditions = codes.conditions
        assert conditions.labels is not None
        labels = torch.where(withheld, UNKNOWN, conditions.labels)
        codes = codes._replace(conditions=conditions._replace(labels=labels))
        for rows in batches[self.first :]:
            yield codes.select(rows, self.device)

    def rows_of(self, number: int) -> Tensor:
        """Return which of the training images a batch has in this process."""
        return self._own_rows(self._generator())[number]

    def _drawn(self, generator: torch.Generator) -> CodeBatch:
        """Return the codes of every image, or of a version of it, each as likely."""
        if not self.versions or self.epoch >= self.alone:
            return self.codes
        drawn = torch.randint(1 + len(self.versions), (self.images,), generator=generator)
        codes, conditions = self.codes.codes.clone(), self.codes.conditions
        above = None if conditions.codes_above is None else conditions.codes_above.clone()
        for number, coding in enumerate(self.versions, 1):
            here = drawn == number
            codes[here] = coding.codes[here]
            if above is not None and coding.conditions.codes_above is not None:
                above[here] = coding.conditions.codes_above[here]
        return CodeBatch(codes, conditions._replace(codes_above=above))

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))

    def _own_rows(self, generator: torch.Generator) -> list[Tensor]:
        order = torch.randperm(self.images, generator=generator)
        batches = order.split(self.batch_size)[: len(self)]
        return [batch[rank() :: world_size()] for batch in batches]


class PriorTraining(TrainingLoop):
    """A training run of the prior of one level.

    Parameters
    ----------
    run : of all levels; folder and metrics of the finer ones get the level's number.
    versions : of ``maps``, to train on, too.
    """

    section = "prior"
    activity = "training the prior"
    terms = ("loss", "bits_per_code")
    batches: CodeBatches
    objective: PriorLoss

    def __init__(
        self,
        maps: CodeMaps,
        level: int,
        config: PriorConfig,
        run: Run,
        versions: Sequence[CodeMaps] = (),
    ) -> None:
        self.codebook, self.size = maps.codebook, maps.sizes[level]
        rows, validation = (maps.rows(s, config.only_class) for s in ("train", "validation"))
        self.image_ids = maps.keys["image_id"].to_numpy(str)[rows]
        train, self.validation = (maps.of_level(level, part) for part in (rows, validation))
        more = [version.of_level(level, rows) for version in versions]
        alone = 1 + config.epochs - max(1, round(_SHARE_ALONE * config.epochs))
        if versions:
            # To end before would leave a prior of versions.
            config = config.model_copy(update={"patience": max(config.patience, config.epochs)})
        batches = CodeBatches(
            train, more, alone, config.batch_size, config.withheld_labels, run.seed, run.device
        )
        if batches.batch_size % world_size():
            raise UserError(
                f"a batch of {batches.batch_size} images cannot be shared by NPROC={world_size()} "
                "processes; set prior.batch_size to a multiple"
            )
        torch.manual_seed(run.seed)
        prior = new_prior(maps, level, config)
        prior.set_base_rates(torch.cat([coding.codes for coding in (train, *more)]))
        objective = PriorLoss(prior).to(run.device)
        super().__init__(_run_of_level(run, level), config, objective, batches, unused=True)

    def load(self) -> Iterable[Mapping[str, object]]:
        """Yield the training batches of an epoch."""
        return (batch._asdict() for batch in self.batches)

    def image_faults(self, batch: int) -> dict[str, str]:
        """Name the images; codes are always fit to be learnt from."""
        return dict.fromkeys(self.image_ids[self.batches.rows_of(batch).numpy()].tolist(), "")

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Measure the validation images without and with their labels."""
        self.objective.eval()
        prior, parts = self.objective.prior, []
        for rows in torch.arange(len(self.validation.codes)).split(self.batches.size):
            codes, labelled = self.validation.select(rows, self.run.device)
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
        save_prior(self.objective.prior, self.codebook, self.run.folder)

    def summary(self) -> PriorLevel:
        """Return the figures of the best epoch, and those of codings without a network."""
        train, validation = (
            part.codes.flatten(1).numpy() for part in (self.batches.codes, self.validation)
        )
        return PriorLevel(
            model=self.objective.prior.name,
            epochs=len(self.history),
            best_epoch=int(self.best["epoch"]),
            images=self.batches.images,
            codes_per_image=train.shape[1],
            parameters=sum(p.numel() for p in self.objective.parameters()),
            val_bits_per_code=self.best["val_bits_per_code"],
            val_bits_per_code_labelled=self.best["val_bits_per_code_labelled"],
            val_bits_of_simple_codings=simple_codings(train, validation, validation, self.size),
        )


def _run_of_level(run: Run, level: int) -> Run:
    """Return a run with the level's own folder and names of metrics."""
    folder = level_folder(run.folder, level)
    folder.mkdir(exist_ok=True)
    suffix = f"_{level}" if level else ""

    def report(metrics: dict[str, float], epoch: int) -> None:
        run.report({f"{name}{suffix}": value for name, value in metrics.items()}, epoch)

    return replace(run, folder=folder, report=report)
