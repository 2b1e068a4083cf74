"""The typed, closed configuration: plain YAML in, a frozen object out, or one clear error.

Every section of a file in ``configs/`` is one class here. An unknown key, a wrong type and an
impossible value are refused with the key, the value and what is allowed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
_Side = Annotated[int, Field(ge=8, le=512)]
Box = tuple[_Side, _Side, _Side]


class StrictModel(BaseModel):
    """A section: no unknown keys, no silent conversions, never changed after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class KermanySource(StrictModel):
    """The Kermany paediatric chest X-rays, in any of their published layouts."""

    kind: Literal["kermany"]


class Labels(StrictModel):
    """Where the labels of a user's own folder come from: a CSV, or the names of its folders.

    In YAML ``labels: labels.csv`` is short for ``labels: {file: labels.csv}``, and ``labels:
    folders`` for ``labels: {join: folders}``. See :mod:`medvq.datasets.labels` for the CSV.
    """

    join: Literal["path", "subject", "study", "instance", "folders"] = "path"
    """What a row of the CSV is about: a file (relative to the folder), or the images with this
    PatientID, StudyInstanceUID or SOPInstanceUID. ``folders``: ``<split>/<label>/...``, no CSV."""
    file: str | None = None
    """The CSV, relative to the folder."""
    key: str | None = None
    """The column joined on; null: ``file``, ``subject``, ``study`` or ``instance``."""
    column: str = "label"
    """The column of the class."""
    target: str | None = None
    """The column of a number to predict, for a regression."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"join": "folders"} if value == "folders" else {"file": value}
        return value

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.file is None) != (self.join == "folders"):
            raise ValueError("labels need a 'file', or 'join: folders', and not both")
        return self


class FolderSource(StrictModel):
    """What every kind of a user's own folder has."""

    folder: str | None = None
    """Where the images are; null: DATA_ROOT/<name> or DATA_MIRROR/<name>."""
    labels: Labels | None = None
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of the subjects drawn for the test, where neither CSV nor folders tell any split."""


class ImageFolderSource(FolderSource):
    """A user's own folder of PNG, JPEG, TIFF, BMP, WebP or DICOM pictures.

    ``labels: null`` is ``labels: folders``.
    """

    kind: Literal["image_folder"]


class NiftiFolderSource(FolderSource):
    """A user's own folder of NIfTI volumes; ``labels: null`` is ``labels: folders``."""

    kind: Literal["nifti_folder"]
    window: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    """Centre and width to show voxels with; null: as :mod:`medvq.images.formats.nifti` says."""


class DicomFolderSource(FolderSource):
    """A user's own folder of DICOM files, as it comes from the archive, in any depth.

    ``labels: null`` gives none: folders of an export are often named after patients. What is not
    of a demanded modality, body part or view is set aside with the reason.
    """

    kind: Literal["dicom_folder"]
    modality: tuple[str, ...] = ()
    """Modality (0008,0060), e.g. [DX, CR]; empty: any."""
    body_part: tuple[str, ...] = ()
    """Body Part Examined (0018,0015), e.g. [CHEST]; empty: any."""
    view: tuple[str, ...] = ()
    """View Position (0018,5101), e.g. [PA, AP]; empty: any."""
    series_as_volumes: bool = False
    """Whether the slices of a series make one volume; otherwise every file is an image."""
    window: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    """Centre and width to show values with, in the units of the modality (Hounsfield for CT);
    null: as :mod:`medvq.images.formats.dicom` says."""

    @model_validator(mode="after")
    def _series_have_no_path(self) -> Self:
        if self.series_as_volumes and self.labels and self.labels.join == "path":
            raise ValueError("a volume has many files: join labels on subject, study or instance")
        return self


class PhantomSource(StrictModel):
    """The built-in synthetic radiographs: written once into the data folder, then read as DICOM."""

    kind: Literal["phantom"]
    train_subjects: Annotated[int, Field(ge=20)] = 420
    test_subjects: Annotated[int, Field(ge=10)] = 160
    size: Annotated[int, Field(ge=64, le=1024)] = 192


class PneumoniaMnistSource(StrictModel):
    """PneumoniaMNIST: ``pneumoniamnist.npz`` with its official splits."""

    kind: Literal["pneumoniamnist"]


class MnistSource(StrictModel):
    """MNIST: the four gzipped IDX files."""

    kind: Literal["mnist"]


class Stl10Source(StrictModel):
    """STL-10: the binary files with the ten official folds; unlabelled images where present."""

    kind: Literal["stl10"]


class HippocampusSource(StrictModel):
    """The hippocampus volumes of the Medical Segmentation Decathlon, and a number to predict."""

    kind: Literal["hippocampus"]


Source = Annotated[
    KermanySource
    | ImageFolderSource
    | NiftiFolderSource
    | DicomFolderSource
    | PhantomSource
    | PneumoniaMnistSource
    | MnistSource
    | Stl10Source
    | HippocampusSource,
    Field(discriminator="kind"),
]


class EqualiseConfig(StrictModel):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994)."""

    clip_limit: Annotated[float, Field(gt=0)] = 2.0
    tiles: Positive = 8


class AlignmentConfig(StrictModel):
    """Registration of every image to the mean training image: a scale and a shift in each axis."""

    enabled: bool = True
    size: Annotated[int, Field(ge=16)] = 56
    """Side of the blurred image that is registered, in pixels."""
    rounds: Positive = 3
    """How often the template is made anew from the images aligned to the one before."""
    iterations: Positive = 20
    zoom: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    """Mean logarithmic zoom into the image: how much of the outer frame is cut away."""
    pull: Annotated[float, Field(ge=0.0)] = 0.05
    """Weight of the pull towards the mean position, against a squared residual of at most 4."""
    min_correlation: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.5
    """An image that correlates less than this with the template is left at the mean position."""


class SwapConfig(StrictModel):
    """Acquisition swaps: the thorax of one image in the position, frame and grey of another."""

    training_copies: Annotated[int, Field(ge=0, le=16)] = 3
    enabled: bool = True
    """Off where images have no common frame: then no copies, and no border-only baseline."""


class IngestConfig(StrictModel):
    """From files to the manifest and the cache of preprocessed images."""

    channels: Literal[1, 3] = 1
    """1 reads every image as grey, 3 as RGB."""
    read_size: Annotated[int, Field(ge=16, le=4096)] | Box = 224
    """Every image is brought to this as it is read: the side of a square, in pixels, or the
    [depth, height, width] of a volume, in voxels."""
    image_size: Annotated[int, Field(ge=16, le=1024)] | Box = 128
    """Size of the preprocessed image, of the same kind as ``read_size``."""
    fit: Literal["stretch", "pad"] = "stretch"
    """How an image is brought to ``read_size``: resized along each axis, or kept at its scale and
    padded with black, or cropped, evenly on both sides."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.12
    """Share of the training subjects set aside for validation."""
    max_quarantined: Share = 0.01
    equalise: EqualiseConfig | None = EqualiseConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    swap: SwapConfig = SwapConfig()

    @property
    def read_shape(self) -> tuple[int, ...]:
        """``read_size`` along each spatial axis."""
        return _shape(self.read_size)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``image_size`` along each spatial axis."""
        return _shape(self.image_size)

    @model_validator(mode="after")
    def _grey_pictures_only(self) -> Self:
        if len(self.read_shape) != len(self.image_shape):
            raise ValueError("read_size and image_size must both be squares or both be boxes")
        if self.channels == 1 and len(self.image_shape) == 2:
            return self
        on = {
            "equalise: null": self.equalise is not None,
            "alignment: {enabled: false}": self.alignment.enabled,
            "swap: {enabled: false}": self.swap.enabled,
        }
        if wanted := [text for text, found in on.items() if found]:
            raise ValueError(f"colour images and volumes need {', '.join(wanted)}")
        return self


def _shape(size: int | tuple[int, int, int]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else size


class AugmentConfig(StrictModel):
    """Ranges of the random versions of an image; see :mod:`medvq.method.augmentation`."""

    log_scale: Annotated[float, Field(ge=0.0, le=1.0)] = 0.18
    shift: Annotated[float, Field(ge=0.0, le=0.5)] = 0.10
    rotation_degrees: Annotated[float, Field(ge=0.0, le=45.0)] = 8.0
    log_gamma: Annotated[float, Field(ge=0.0, le=2.0)] = 0.3
    flip: bool = False
    """Whether half of the versions are mirrored left to right. Never of a chest: hearts are on the
    left."""
    smallest_crop: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Versions show a random part of the image, at least this share of it; 1 shows all."""
    colour: Share = 0.0
    """Strength of the changes of saturation and hue of pretraining's views; 0 makes none."""
    blur: Share = 1.0
    """How far pretraining's views may be blurred; they are sharpened by up to half of that."""
    cut_outs: Annotated[int, Field(ge=0, le=16)] = 2
    """Squares that are blanked in each of pretraining's views."""


class ContrastConfig(StrictModel):
    """Contrast between two views of an image, cell by cell of the latent grid."""

    weight: Annotated[float, Field(ge=0.0)] = 1.0
    temperature: Annotated[float, Field(gt=0.0)] = 1.2
    grid: Positive = 4
    swapped_share: Share = 0.3
    """How many second views are acquisition-swapped copies."""
    same_subject_share: Share = 1.0
    """How many second views are of another image of the same subject, where there is one. Less
    where a subject's images show different things, such as frontal and lateral views."""
    strangers: bool = False
    """Whether the other image is one of a stranger who has several, too: a control, that tells what
    is learnt from whose images they are from what is learnt from who has several."""


class FinerCodes(StrictModel):
    """A codebook at a shallower level than the deepest."""

    halvings: Positive
    """How often the image is halved before this level: its codes' grid."""
    codebook_size: Annotated[int, Field(ge=2, le=65536)]


_EPOCHS = 18
_LEAST_STEPS = 600


class TrainingConfig(StrictModel):
    """What every training has."""

    epochs: Positive | None = None
    """null: 18, and of a small set as many as make 600 steps."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    patience: Positive = 10
    """Epochs without a better validation loss after which training stops; where ``epochs`` is
    null, at least half of all epochs."""
    amp: Literal["auto", "off", "bfloat16"] = "auto"

    def epochs_of(self, batches: int) -> int:
        """How many epochs of so many batches the training has."""
        return self.epochs or max(_EPOCHS, -(-_LEAST_STEPS // batches))

    def patience_of(self, batches: int) -> int:
        """After how many epochs of so many batches, none of them better, the training stops."""
        half = 0 if self.epochs else self.epochs_of(batches) // 2
        return max(self.patience, half)


class PretrainConfig(TrainingConfig):
    """The VQ-VAE and its training."""

    widths: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=8)] = (16, 64, 128, 256)
    """Channels after each halving of the resolution."""
    residual_levels: Annotated[int, Field(ge=0)] = 2
    """How many of the deepest levels carry residual blocks."""
    residual_blocks: Positive = 1
    """How many each of them carries, and as many follow wherever codes are decoded."""
    batch_norm: bool = True
    decoder_widths: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=8)] | None = None
    """Channels of the decoder, shallowest first; null mirrors the encoder."""
    codebook_size: Annotated[int, Field(ge=2, le=65536)] = 512
    codebook_dim: Positive = 64
    finer: tuple[FinerCodes, ...] = ()
    """More codebooks, coarsest first; each encodes what those before it leave unsaid."""
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
    commitment: Annotated[float, Field(ge=0.0)] = 0.25
    bypass_codebook: bool = False
    """Whether the decoder is given what the encoder made instead of its codes: an autoencoder, to
    compare with. The codebook then only follows the encoder, as k-means would."""
    reconstruction: Annotated[float, Field(ge=0.0)] = 0.3
    contrast: ContrastConfig = ContrastConfig()
    augment: AugmentConfig = AugmentConfig()
    augment_strength: Annotated[float, Field(ge=0.0, le=2.0)] = 0.25
    image_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training subjects whose images are trained on; smaller shares are parts of
    larger ones."""
    photometric: bool = True
    """Whether the network sees views with other contrast, noise and cut-outs; what it is to
    reconstruct has none."""

    @model_validator(mode="after")
    def _decoder_mirrors_encoder(self) -> Self:
        if self.decoder_widths is not None and len(self.decoder_widths) != len(self.widths):
            raise ValueError("decoder_widths must have as many entries as widths")
        if self.residual_levels > len(self.widths):
            raise ValueError("residual_levels cannot exceed the number of widths")
        halvings = [len(self.widths), *(codes.halvings for codes in self.finer)]
        if any(fine >= coarse for coarse, fine in pairwise(halvings)):
            raise ValueError(
                f"finer: halvings must fall from level to level, from below the {len(self.widths)} "
                "of widths"
            )
        return self


class PriorConfig(TrainingConfig):
    """The model of the codes and its training."""

    model: Literal["pixelcnn", "transformer"] = "transformer"
    """Of the coarsest codes."""
    finer_model: Literal["pixelcnn", "transformer"] = "pixelcnn"
    """Of every finer level of ``pretrain.finer``, each given the codes of the level above it. What
    a Transformer attends to grows with the square of the grid: 16x16 codes are as many as it should
    be given."""
    channels: Positive = 96
    depth: Positive = 3
    heads: Positive = 4
    """Of the Transformer's attention."""
    reach: Positive = 1
    """How far a layer of the PixelCNN sees along each axis."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    withheld_labels: Share = 0.2
    """How often a training image's label is withheld, so that the prior also stands without."""
    only_class: str | None = None
    """The name of the class whose images alone are trained on; null: all images."""
    epochs: Positive = 7
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-2
    patience: Positive = 3

    @model_validator(mode="after")
    def _heads_share_channels(self) -> Self:
        if "transformer" in (self.model, self.finer_model) and self.channels % self.heads:
            raise ValueError("channels must be a multiple of heads")
        return self


class SampleConfig(StrictModel):
    """Images drawn from the prior."""

    number: Annotated[int, Field(ge=1, le=4096)] = 64
    class_name: str | None = None
    """Of this class; null: of any."""
    temperature: Annotated[float, Field(ge=0.05, le=10.0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw every code from so many of the likeliest; 0: from all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Draw every code from the likeliest that together reach this probability."""
    guidance: Annotated[float, Field(ge=0.0, le=20.0)] = 1.0
    """How much more than the prior has learnt speaks for ``class_name``: logits are those without
    a label, and this many times what the label adds to them; 1: as learnt."""
    batch_size: Positive = 64


class ExtractConfig(StrictModel):
    """From a trained model to the feature store."""

    grid: Positive = 4
    """Embeddings are average-pooled to this grid; the pyramid goes down to it by halves."""
    versions: Annotated[int, Field(ge=0, le=64)] = 4
    augment: AugmentConfig = AugmentConfig()
    augment_strength: Annotated[float, Field(ge=0.0, le=2.0)] = 0.6
    batch_size: Positive = 256


class ProbeConfig(StrictModel):
    """The linear probe and how it is judged."""

    label_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    features: Annotated[tuple[str, ...], Field(min_length=1)] = ("embedding",)
    """The feature sets that make up MedVQ's row."""
    label_subsets: Literal["random", "official"] = "random"
    """Labels are drawn at random, or by the folds that the data set is published with."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 10
    folds: Annotated[int, Field(ge=2, le=20)] = 4
    regularisation: Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)] = (
        1e-5,
        1e-4,
        1e-3,
    )
    """Values of scikit-learn's ``C`` that the grouped cross-validation chooses from. The log loss
    of a few dozen held-out images likes larger ones, which then rank other images worse."""
    larger_for_baselines: tuple[Annotated[float, Field(gt=1.0)], ...] = (3.0, 10.0)
    """Multiples of the largest C that baselines may choose besides: most of what was never trained
    wants less regularisation, and is not to be held back by what suits MedVQ's features."""
    components: Positive = 256
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000

    def of_baselines(self) -> ProbeConfig:
        """The same with the larger values of C.

        >>> ProbeConfig(regularisation=(0.5, 1.0)).of_baselines().regularisation
        (0.5, 1.0, 3.0, 10.0)
        """
        largest = max(self.regularisation)
        larger = tuple(largest * factor for factor in self.larger_for_baselines)
        return self.model_copy(update={"regularisation": (*self.regularisation, *larger)})


class Config(StrictModel):
    """One data set and everything that is done with it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    description: str = ""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    source: Source
    ingest: IngestConfig = IngestConfig()
    pretrain: PretrainConfig = PretrainConfig()
    extract: ExtractConfig = ExtractConfig()
    prior: PriorConfig = PriorConfig()
    sample: SampleConfig = SampleConfig()
    probe: ProbeConfig = ProbeConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        stride = 2 ** len(self.pretrain.widths)
        if any(side % stride for side in self.ingest.image_shape):
            raise ValueError(
                f"ingest.image_size={self.ingest.image_size} must be a multiple of {stride}, "
                "since every entry of pretrain.widths halves the image"
            )
        latent = [side // stride for side in self.ingest.image_shape]
        for key, grid in (
            ("pretrain.contrast.grid", self.pretrain.contrast.grid),
            ("extract.grid", self.extract.grid),
        ):
            if any(side % grid for side in latent):
                sides = "x".join(map(str, dict.fromkeys(latent)))
                raise ValueError(f"{key}={grid} must divide the latent grid of {sides}")
        return self

    @model_validator(mode="after")
    def _guidance_has_both_conditionals(self) -> Self:
        if self.sample.guidance != 1 and not self.prior.withheld_labels:
            raise ValueError(
                f"sample.guidance={self.sample.guidance:g} needs a prior that was trained without "
                "labels too, and prior.withheld_labels=0"
            )
        return self
