"""Reading new images: what worker processes do, which import little."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

from medvq.images.formats import is_dicom
from medvq.images.formats.identity import identify
from medvq.images.formats.notes import recorded
from medvq.images.reading import ImageFiles, Reader, ReadResult

if TYPE_CHECKING:
    from medvq.config import Config


@dataclass(frozen=True)
class NewImageResult(ReadResult):
    """A new image as read.

    Attributes
    ----------
    applied : what was done to show it.
    other_kind : in what its header differs from the images that were trained on, or that there is
        nothing to be seen.
    """

    applied: tuple[str, ...] = ()
    other_kind: str = ""


_FIELDS = tuple(field.name for field in fields(ReadResult))


@dataclass(frozen=True)
class NewImageReader(Reader):
    """Reads as :class:`~medvq.images.reading.Reader`, and keeps what was done to the image.

    Attributes
    ----------
    modalities : that the images of training were demanded to be of; empty where none was.
    """

    modalities: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the reader of new images for what ``config`` was trained on."""
        ingest = config.ingest
        modalities = tuple(getattr(config.source, "modality", ()))
        return cls(ingest.read_shape, ingest.channels, ingest.fit, modalities)

    def __call__(self, files: ImageFiles) -> NewImageResult:
        with recorded() as notes:
            result = self._result(files)
            other = self._other_kind(files, result)
        values = {name: getattr(result, name) for name in _FIELDS}
        values["notices"] = notes.notices
        return NewImageResult(**values, applied=notes.applied, other_kind=other)

    def _other_kind(self, files: ImageFiles, result: ReadResult) -> str:
        if result.image is None:
            return ""
        if result.image.min() == result.image.max():
            return "it shows nothing: all its pixels have one value"
        return self._other_modality(files)

    def _other_modality(self, files: ImageFiles) -> str:
        if not self.modalities or not is_dicom(files.paths[0]):
            return ""
        identity = identify(files.paths[0])
        if identity is not None and identity.modality in self.modalities:
            return ""
        return f"the modality is not {' or '.join(self.modalities)}"
