"""What commands on a fitted probe need: the probe, its encoder, and what both were made from."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvq.errors import UserError
from medvq.images.cache import ReadCache
from medvq.images.formats import is_dicom, may_show
from medvq.images.preparation import PreparedImages
from medvq.images.reading import ImageFiles, ReadResult, read_all
from medvq.inference import Encoder, load_probe, without_grey_axis
from medvq.method.scaling import to_unit
from medvq.storage import artifacts
from medvq.storage.feature_store import FEATURES
from medvq.storage.probe_encoder import extract_and_pretrain
from medvq.summaries import ProbeSummary


class ProbeSources:
    """A fitted probe with the artifacts that it was made from.

    Attributes
    ----------
    window : that the training images were shown with, where the configuration names one.

    Parameters
    ----------
    folder : the artifact of the stage ``probe``.
    device : ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    UserError
        An artifact is missing, or was changed or damaged.
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self.artifact = artifacts.finished(folder, "probe")
        self.summary = self.artifact.summary(ProbeSummary)
        self.pipeline = load_probe(folder)
        self.extract, pretrain = extract_and_pretrain(self.artifact)
        self.ingest = artifacts.source(self.extract, "ingest")
        self.encoder = Encoder(pretrain, device)
        self.window: tuple[float, float] | None = getattr(
            self.artifact.config().source, "window", None
        )

    @cached_property
    def store(self) -> Path:
        """The table of the features of the images, verified."""
        parts = [name for name in self.extract.record.files if Path(name).parts[0] == FEATURES]
        artifacts.verify(self.extract, *parts)
        return self.extract.folder / FEATURES

    def images(self, name: str) -> NDArray[np.uint8]:
        """Return a file of images of the artifact of ``ingest``, verified."""
        artifacts.verify(self.ingest, name)
        return np.asanyarray(np.load(self.ingest.folder / name, mmap_mode="r"))

    def read(self, file: Path) -> tuple[ReadResult, PreparedImages]:
        """Read an image file, and prepare it as the training images were.

        Raises
        ------
        UserError
            It cannot be read.
        """
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is no file: name the file of an image")
        files = ImageFiles((file,), window=self.window)
        (result,) = read_all([files], self.encoder.read, ReadCache(None))
        if result.image is None:
            shown = may_show(str(file), dicom=is_dicom(file))
            raise UserError(f"{file if shown else 'the file'}: {result.reason}")
        return result, self.encoder.prepare(without_grey_axis(result.image[None]))

    def features(self, prepared: PreparedImages) -> NDArray[np.float32]:
        """Return the features (B, D) that the probe reads of prepared images."""
        sets = self.encoder.features(to_unit(prepared.images))
        return np.concatenate([sets[name] for name in self.pipeline[0].names], axis=1)
