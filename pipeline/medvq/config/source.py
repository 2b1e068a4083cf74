"""Where images and labels come from: a published data set, a user's folder, or the phantoms."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from medvq.config.base import StrictModel, Text

FOLDS = 5
"""Into which the images of a published data set may be divided; see :class:`PublishedSource`."""
Window = tuple[float, Annotated[float, Field(gt=0)]]


class Labels(StrictModel):
    """Where the labels of a user's own folder come from: a CSV, or the names of its folders.

    In YAML ``labels: labels.csv`` is short for ``labels: {file: labels.csv}``, and ``labels:
    folders`` for ``labels: {join: folders}``. See :mod:`medvq.datasets.labels` for the CSV.
    """

    join: Literal["path", "subject", "study", "instance", "folders"] = "path"
    """What a row of the CSV is about: a file (relative to the folder), or the images with this
    PatientID, StudyInstanceUID or SOPInstanceUID. ``folders``: ``<split>/<label>/...``, no CSV."""
    file: Text | None = None
    """The CSV, relative to the folder or to the configuration's own folder."""
    key: Text | None = None
    """The column joined on; null: ``file``, ``subject``, ``study`` or ``instance``."""
    column: Text = "label"
    """The column of the class."""
    target: Text | None = None
    """The column of a number to predict, for a regression."""
    only: bool = False
    """Whether images that the labels do not name are left out; otherwise they are images without a
    label, which pretraining uses."""
    # Strict only in JSON, which a validator that runs before leaves behind.
    classes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """The classes that there are: a label that is none of them is refused. Empty: those that the
    labels name; then a rare label that differs from a frequent one by one or two letters is
    refused."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"join": "folders"} if value == "folders" else {"file": value}
        return value

    @model_validator(mode="after")
    def _file_or_folders(self) -> Self:
        if (self.file is None) != (self.join == "folders"):
            raise ValueError("labels need a 'file', or 'join: folders', and not both")
        return self


class FolderSource(StrictModel):
    """What every kind of a user's own folder has."""

    folder: Text | None = None
    """Where the images are, relative to the configuration; null: DATA_ROOT/<name> or
    DATA_MIRROR/<name>."""
    labels: Labels | None = None
    beside: str | None = None
    """Where ``labels.file`` is looked for besides the folder: the configuration's own folder, which
    is filled in when it is read."""
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of the labelled subjects (of all, where none is labelled) drawn for the test, where
    neither CSV nor folders name a test split."""


class ImageFolderSource(FolderSource):
    """A user's own folder of PNG, JPEG, TIFF, BMP, WebP or DICOM pictures.

    ``labels: null`` is ``labels: folders``.
    """

    kind: Literal["image_folder"]


class NiftiFolderSource(FolderSource):
    """A user's own folder of NIfTI volumes; ``labels: null`` is ``labels: folders``."""

    kind: Literal["nifti_folder"]
    window: Window | None = None
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
    presentation_intent: tuple[Literal["FOR PRESENTATION", "FOR PROCESSING"], ...] = ()
    """Presentation Intent Type (0008,0068); empty: any, but what is for processing is set aside
    where its study holds images for presentation, too."""
    series_as_volumes: bool = False
    """Whether the slices of a series make one volume; otherwise every file is an image."""
    window: Window | None = None
    """Centre and width to show values with, in the units of the modality (Hounsfield for CT);
    null: as :mod:`medvq.images.formats.greys` says."""

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
    """Nominal rows and columns of a picture, in pixels."""
    multiplicity: Literal["independent", "by_label"] = "independent"
    """Whether the number of a subject's pictures says nothing of the label, or goes with it: the
    ill are imaged again, as in many hospitals."""
    mixed: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    """Share of the patches in the lungs that have the other class's grain: at 0 a few labels settle
    the class, at a half nothing tells it."""


class PublishedSource(StrictModel):
    """A published data set, in any of its published layouts."""

    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """The module of :mod:`medvq.datasets.published` and the file in ``data_manifests/``."""
    split: Literal["official", "patients", "blocks"] = "official"
    """Which images are held back for the test: those that the publisher says; or those of one of
    five folds of all images, by patients at random, or by contiguous blocks of their numbers."""
    fold: Annotated[int, Field(ge=0, lt=FOLDS)] | None = None
    """Which of the folds is the test split; with the official split there is none."""

    @model_validator(mode="after")
    def _fold_of_a_split(self) -> Self:
        if self.split == "official" and self.fold is not None:
            raise ValueError(
                "fold is of split=patients or split=blocks; the official split has none"
            )
        if self.split != "official" and self.fold is None:
            raise ValueError(f"split={self.split} needs the fold to test on: fold=0 to {FOLDS - 1}")
        return self


class JoinedSource(StrictModel):
    """The training images of several published data sets, without labels, to pretrain on."""

    kind: Literal["joined"]
    members: Annotated[tuple[str, ...], Field(min_length=1)]
    """Kinds of published data sets, whose folders lie in one folder: DATA_ROOT or DATA_MIRROR."""

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len(set(self.members)) < len(self.members):
            raise ValueError("members names a data set twice")
        return self


SOURCES: dict[str, type[StrictModel]] = {
    "image_folder": ImageFolderSource,
    "nifti_folder": NiftiFolderSource,
    "dicom_folder": DicomFolderSource,
    "phantom": PhantomSource,
    "joined": JoinedSource,
    "published": PublishedSource,
}
"""The sections that ``source`` may be, by the name that an error of pydantic gives them."""


def _tag(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if kind in SOURCES else "published"


Source = Annotated[
    Annotated[ImageFolderSource, Tag("image_folder")]
    | Annotated[NiftiFolderSource, Tag("nifti_folder")]
    | Annotated[DicomFolderSource, Tag("dicom_folder")]
    | Annotated[PhantomSource, Tag("phantom")]
    | Annotated[JoinedSource, Tag("joined")]
    | Annotated[PublishedSource, Tag("published")],
    Discriminator(_tag),
]
