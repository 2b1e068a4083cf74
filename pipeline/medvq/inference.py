"""Use a trained encoder and a fitted probe on image files."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import Executor
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from torch import Tensor

from medvq.device import choose_device, threads_of_one_core
from medvq.errors import UserError
from medvq.images.cache import ReadCache
from medvq.images.formats import is_dicom, may_show
from medvq.images.preparation import Preparation
from medvq.images.reading import ImageFiles, Reader, ReadResult, read_all
from medvq.method.alignment import Alignment
from medvq.method.features import FeatureExtractor, FeatureMaps, FeatureSets
from medvq.method.scaling import to_network, to_unit
from medvq.method.vqvae import VQVAE, Architecture
from medvq.storage import artifacts, probe_file
from medvq.storage.artifacts import Artifact
from medvq.storage.external import ExternalFeatures, load_external
from medvq.storage.start import imagenet_encoder
from medvq.storage.weights import FILE, load_model

# Files that are read before they are encoded together: it bounds the memory.
_BATCH = 256
# Images that are registered and encoded at a time. The last group is filled up: sums over a group
# of another size differ in the last bits, and what is found of an image must not depend on others.
_GROUP = 32


def load_encoder(path: str | Path, device: str = "auto") -> Encoder:
    """Return the encoder of a finished pretraining.

    Parameters
    ----------
    path : the artifact of the stage ``pretrain``, e.g. ``artifacts/kermany/pretrain/latest``; of
        another encoder (the section ``encoder``) that of ``extract``. The artifact of ``ingest``
        that it was made from must lie beside it: it holds the template that images are registered
        to.
    device : ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    UserError
        There is no such artifact, its files are damaged, or there is no such device.
    """
    if str(device) not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device} is none of: auto, cpu, cuda")
    artifact = artifacts.find_linked(Path(path))
    stage = "pretrain"
    if artifact is not None and artifact.record.stage == "extract":
        stage = "extract" if artifact.config().encoder is not None else stage
    return Encoder(artifacts.finished(Path(path), stage), str(device))


def load_probe(path: str | Path) -> Pipeline:
    """Return a fitted probe: a scikit-learn pipeline that takes what an :class:`Encoder` returns.

    Parameters
    ----------
    path : the artifact of the stage ``probe``, e.g. ``artifacts/kermany/probe/latest``.

    Returns
    -------
    A pipeline with ``predict_proba``, or ``predict`` alone where the probe predicts a number. No
    code is executed from the file.

    Raises
    ------
    UserError
        There is no such artifact, or it holds anything else than a probe.
    """
    artifact = artifacts.finished(Path(path), "probe")
    artifacts.verify(artifact, probe_file.FILE)
    return probe_file.load_probe(artifact.folder)


class Encoding(NamedTuple):
    """The codes of a batch of images, and what they were quantized from.

    Attributes
    ----------
    codes : int64, one tensor (B, *grid) for each level of codes, coarsest first.
    latents : float32, one tensor (B, dim, *grid) for each.
    """

    codes: list[Tensor]
    latents: list[Tensor]


class Encoder:
    """A trained encoder, with everything that its training images went through before it.

    Attributes
    ----------
    config : the configuration that it was trained with.
    read : reads files at the size of its training images.
    prepare : equalises, registers and scales what was read.
    """

    def __init__(self, artifact: Artifact, device: str = "auto") -> None:
        self.config = artifact.config()
        self.device = torch.device(choose_device(device))
        self._external: ExternalFeatures | None = None
        trained: Artifact | None = artifact
        if artifact.record.stage == "extract":
            encoder, grid = self.config.encoder, self.config.extract.grid
            assert encoder is not None
            self._external = load_external(encoder, grid, self.device, artifact.record.inputs)
            trained = artifacts.source(artifact, "pretrain") if self.config.trains else None
        self._model: VQVAE | None = None
        if trained is not None:
            artifacts.verify(trained, FILE)
            self._model = load_model(trained.folder / FILE).to(self.device)
        ingest, alignment = self.config.ingest, None
        if ingest.alignment.enabled:
            images = artifacts.source(artifact, "ingest")
            artifacts.verify(images, "template.npy")
            template = np.load(images.folder / "template.npy")
            alignment = Alignment(torch.from_numpy(template)[None, None], ingest.alignment)
        frozen = self.config.extract.frozen_imagenet
        self._frozen = imagenet_encoder(ingest.channels) if frozen else None
        self.prepare = Preparation(ingest, alignment)
        self.read = Reader(ingest.read_shape, ingest.channels, ingest.fit)

    @property
    def model(self) -> VQVAE:
        """The trained network; an encoder of another kind may have none beside it."""
        if self._model is None:
            raise UserError("no VQ-VAE was trained beside this encoder: encoder.with_vqvae=true")
        return self._model

    def __call__(self, files: Iterable[str | Path]) -> pd.DataFrame:
        """Read, equalise, register, scale and encode image files.

        Parameters
        ----------
        files : DICOM, NIfTI, PNG, JPEG, TIFF, BMP or WebP files.

        Returns
        -------
        One row per file, in their order. Columns: ``image_id`` (the beginning of the file's SHA-256
        checksum), ``file`` (empty for a DICOM file, whose name may name a patient), and one array
        per cell for every feature set: ``codes_0``, ``histogram``, ``embedding``, ...

        Raises
        ------
        UserError
            A file cannot be read; the message says which and why.
        TypeError
            ``files`` is one path, whose letters would be taken for files, or holds other things.
        """
        if isinstance(files, str | bytes | PathLike):
            raise TypeError("files is one path; give a list of paths: [path]")
        paths = [_path(file) for file in files]
        window = getattr(self.config.source, "window", None)
        listed = [ImageFiles((path,), window=window) for path in paths]
        results = read_all(listed, self.read, ReadCache(None))
        parts: list[pd.DataFrame] = []
        batch: list[tuple[Path, ReadResult]] = []
        for place, pair in enumerate(zip(paths, results, strict=True)):
            if pair[1].image is None:
                shown = may_show(str(pair[0]), dicom=is_dicom(pair[0]))
                raise UserError(f"{pair[0] if shown else f'file {place}'}: {pair[1].reason}")
            batch.append(pair)
            if len(batch) == _BATCH:
                parts.append(self._table(batch))
                batch = []
        if batch or not parts:
            parts.append(self._table(batch))
        return pd.concat(parts, ignore_index=True)

    @property
    def template(self) -> Tensor | None:
        """What images are registered to, (1, 1, height, width); None where they are not."""
        alignment = self.prepare.alignment
        return None if alignment is None else alignment.template

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Encoding:
        """Encode a batch of prepared images.

        Parameters
        ----------
        images : float (B, C, *spatial) in [0, 1], equalised and registered as the training images
            were; ``config.ingest`` has the number of channels and the size.

        Raises
        ------
        ValueError
            The shape or the range is another one.
        TypeError
            The images are no tensor.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"images are a {type(images).__name__}, not a torch.Tensor")
        ingest = self.config.ingest
        expected = (ingest.channels, *ingest.image_shape)
        if images.ndim != 1 + len(expected) or tuple(images.shape[1:]) != expected:
            shape = ", ".join(map(str, expected))
            raise ValueError(f"images of shape {tuple(images.shape)} are not (B, {shape})")
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}, not floating-point numbers in [0, 1]")
        if not ((images >= 0) & (images <= 1)).all():
            low, high = float(images.min()), float(images.max())
            raise ValueError(f"images range from {low:g} to {high:g}, not within [0, 1]")
        scaled = to_network(images.float().to(self.device))
        latents, codes = self.model.quantize(self.model.features(scaled))
        return Encoding(codes, latents)

    def _table(self, batch: list[tuple[Path, ReadResult]]) -> pd.DataFrame:
        table = pd.DataFrame(
            {
                "image_id": [result.sha256[:16] for _, result in batch],
                "file": [_shown(path) for path, _ in batch],
            }
        )
        if not batch:
            return table
        images = np.stack([result.image for _, result in batch if result.image is not None])
        sets = self.features_as_read(images)
        return table.assign(**{name: list(values) for name, values in sets.items()})

    def features_as_read(
        self, images: NDArray[np.uint8], only: Collection[str] | None = None
    ) -> FeatureSets:
        """Prepare images and return every feature set; those of one depend on no other image.

        Parameters
        ----------
        images : as :attr:`read` returns them, (B, C, *read_shape).
        only : names of the baselines that are wanted; None for all.
        """
        return self.register_and_encode(images, only)[0]

    def register_and_encode(
        self, images: NDArray[np.uint8], only: Collection[str] | None = None
    ) -> tuple[FeatureSets, NDArray[np.bool_]]:
        """Return :meth:`features_as_read`, and which images (B,) cannot be registered."""
        number = len(images)
        filled = np.concatenate([images, np.repeat(images[-1:], -number % _GROUP, axis=0)])
        groups = np.split(without_grey_axis(filled), len(filled) // _GROUP)
        with threads_of_one_core(torch.get_num_threads()) as threads:
            prepared = list(threads.map(self.prepare, groups))
        sets = self.features(to_unit(np.concatenate([one.images for one in prepared])), only)
        failed = torch.cat([one.registration.failed for one in prepared]).numpy()[:number]
        return {name: values[:number] for name, values in sets.items()}, failed

    def features(self, images: Tensor, only: Collection[str] | None = None) -> FeatureSets:
        """Return every feature set of prepared images (B, C, *spatial) in [0, 1].

        ``only`` names the baselines that are wanted; None stands for all.
        """
        with threads_of_one_core(torch.get_num_threads()) as threads:
            extractor = self._extractor(images, threads, only)
            sets = extractor.features(images, frame=None)
        return sets | (extractor.histograms(sets["codes_0"]) if "codes_0" in sets else {})

    def maps(self, images: Tensor) -> FeatureMaps:
        """Return what :meth:`features` pools: codes, and by feature set maps, on the CPU."""
        with threads_of_one_core(1) as threads:
            codes, pooled = self._extractor(images, threads).maps(images)
        pooled["raw_pixels"] = [images]
        on_cpu = {name: [one.float().cpu() for one in maps] for name, maps in pooled.items()}
        return FeatureMaps([grid.cpu() for grid in codes], on_cpu)

    def _extractor(
        self, images: Tensor, threads: Executor, only: Collection[str] | None = None
    ) -> FeatureExtractor:
        ingest = self.config.ingest
        model: VQVAE | Architecture
        latent_shape: list[int] = []
        if self._model is not None:
            model = self._model
            latent_shape = [side // 2 ** model.halvings[0] for side in images.shape[2:]]
        else:
            axes = len(ingest.image_shape)
            model = Architecture.from_config(self.config.pretrain, ingest.channels, axes)
        return FeatureExtractor(
            model,
            latent_shape,
            self.config.extract.grid,
            self.device,
            threads,
            frozen=self._frozen,
            with_texture=self.config.extract.texture,
            only=only,
            external=self._external,
        )


def without_grey_axis(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images as read (B, C, *spatial) as the cache holds them: grey pictures (B, H, W)."""
    return images[:, 0] if images.ndim == 4 and images.shape[1] == 1 else images


def _path(file: object) -> Path:
    if not isinstance(file, str | PathLike):
        raise TypeError(
            f"files holds a {type(file).__name__}, not paths; arrays are encoded by Encoder.encode"
        )
    return Path(file)


def _shown(path: Path) -> str:
    return "" if is_dicom(path) else str(path)
