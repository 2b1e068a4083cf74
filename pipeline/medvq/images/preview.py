"""Files as the pipeline sees them before resizing, as 8-bit pictures, and what was done to them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from medvq.errors import UnreadableImage, UserError
from medvq.images.formats import is_dicom, may_show, read_image
from medvq.images.formats.notes import recorded
from medvq.images.resizing import to_bytes
from medvq.images.workers import WorkerFailure, map_in_processes, processors

Bytes = NDArray[np.uint8]

# Seconds after which a decoder counts as hung: somebody is waiting.
_TIMEOUT = 120.0
# Characters of a file's name that the name of its picture has; a name holds 255 bytes at most.
_LONGEST_NAME = 50


@dataclass(frozen=True)
class Preview:
    """A file as it was read, or why it was not.

    Attributes
    ----------
    file : as the user typed it; of what is or may be DICOM, whose path may name a patient, ``file``
        and its place among the files.
    reason : why it is refused, empty where it is read.
    size : along each spatial axis.
    applied : what was done to show it, and what its user should know of it.
    notices : of ``applied``, what the user should know.
    mean, min, max : of all pixels, as a share of white.
    levels : number of the 256 grey levels that occur.
    picture : the PNG file that was written.
    """

    file: str
    status: Literal["read", "refused"]
    reason: str = ""
    size: tuple[int, ...] = ()
    applied: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    mean: float | None = None
    min: float | None = None
    max: float | None = None
    levels: int | None = None
    picture: str | None = None

    def line(self) -> str:
        """Return one line for people."""
        if self.status == "refused":
            return f"{self.file}: refused: {self.reason}"
        size = " x ".join(map(str, self.size[::-1]))
        how = "; ".join(self.applied) or "all values as stored"
        return f"{self.file}: {size}, mean {self.mean:.3f} of white: {how} -> {self.picture}"


@dataclass(frozen=True)
class PreviewFile:
    """A file to read, what it is called, and the PNG file to write."""

    path: Path
    name: str
    picture: Path


def preview(files: Sequence[str], folder: Path) -> Iterator[Preview]:
    """Read files in worker processes and write what they show into ``folder``.

    Parameters
    ----------
    files : paths as the user typed them.
    folder : made where it is missing; a picture is named after its file, or as that is called.

    Yields
    ------
    One preview for each file, in order.

    Raises
    ------
    UserError
        The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror})") from error
    names = [_shown(file, place) for place, file in enumerate(files, 1)]
    items = [
        PreviewFile(Path(file), name, folder / picture)
        for file, name, picture in zip(files, names, _pictures(names), strict=True)
    ]
    count = min(processors(), max(1, len(files)))
    results = map_in_processes(read_preview, items, processes=count, timeout=_TIMEOUT)
    for item, result in zip(items, results, strict=True):
        if isinstance(result, WorkerFailure):
            result = Preview(item.name, "refused", result.reason)
        yield result


def read_preview(item: PreviewFile) -> Preview:
    """Read one file and write its picture: what worker processes do."""
    path = item.path
    with recorded() as notes:
        try:
            if not path.is_file():
                reason = "a folder; name the files in it" if path.is_dir() else "no such file"
                raise UnreadableImage(reason)
            image = to_bytes(read_image(path))
        except UnreadableImage as error:
            return Preview(item.name, "refused", str(error))
        except OSError as error:
            return Preview(item.name, "refused", f"the file cannot be read ({error.strerror})")
    _save(Pillow.fromarray(_middle_slices(image[0])), item.picture)
    return Preview(
        item.name,
        "read",
        size=image.shape[1:],
        applied=(*notes.applied, *notes.notices),
        notices=notes.notices,
        mean=float(image.mean(dtype=np.float64)) / 255,
        min=float(image.min()) / 255,
        max=float(image.max()) / 255,
        levels=int(np.count_nonzero(np.bincount(image.ravel(), minlength=256))),
        picture=str(item.picture),
    )


def _save(picture: Pillow.Image, file: Path) -> None:
    """Write aside and rename, so that nobody ever sees half a picture."""
    aside = file.with_name(f".{file.name[-_LONGEST_NAME:]}.{os.getpid()}")
    try:
        picture.save(aside, "PNG")
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def as_line(previews: Sequence[Preview]) -> str:
    """Return previews as one JSON object on one line."""
    return json.dumps({"files": [asdict(one) for one in previews]})


def _shown(file: str, place: int) -> str:
    return file if may_show(file, dicom=is_dicom(Path(file))) else f"file {place}"


def _pictures(names: Sequence[str]) -> Iterator[str]:
    """Yield a name for each picture: none twice, and none that a file of the user would have."""
    used: set[str] = set()
    for shown in names:
        stem = (
            Path(shown).name.encode(errors="replace").decode().removesuffix(".gz")[:_LONGEST_NAME]
        )
        stem = stem.rsplit(".", 1)[0] or "file"
        number, name = 2, f"{stem}.preview.png"
        while name in used:
            number, name = number + 1, f"{stem}-{number}.preview.png"
        used.add(name)
        yield name


def _middle_slices(image: Bytes) -> Bytes:
    """Return a picture, or of a volume (depth, height, width) the middle slices, side by side.

    Axial, coronal and sagittal; the latter two stand head up.
    """
    if image.ndim == 2:
        return image
    depth, height, width = (length // 2 for length in image.shape)
    slices = (image[depth], image[::-1, height], image[::-1, :, width])
    tallest = max(len(one) for one in slices)
    return np.hstack([np.pad(one, ((0, tallest - len(one)), (0, 0))) for one in slices])
