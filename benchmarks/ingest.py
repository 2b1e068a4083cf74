"""How fast files are read: MedVQ, MONAI's own transforms in one process, and decoders alone.

Writes ``docs/INGEST.md``. They take turns, so that whatever else the machine does falls on all
of them alike; ratios are taken within a turn.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import cv2
import numpy as np
from medvq.errors import UserError
from medvq.images.cache import ReadCache
from medvq.images.reading import ImageFiles, Reader, read_all
from medvq.images.workers import map_in_processes, processors
from PIL import Image

from benchmarks.command_line import run_study

DOCS = Path(__file__).parent.parent / "docs"
SET = "kermany-fullres"
SIDE = 224
REPEATS = 40
TURNS = 5
_CHUNK = 20


def main() -> None:
    """Run the study and write its page."""
    files = _files() * REPEATS
    ways = {
        "MedVQ": by_medvq,
        "OpenCV's decoder alone": by_opencv,
        "Pillow's decoder alone": by_pillow,
        "MONAI": by_monai,
    }
    for way in ways.values():
        way(files[:_CHUNK])  # what is imported and cached at first use
    seconds = {name: np.zeros(TURNS) for name in ways}
    busy = {name: np.zeros(TURNS) for name in ways}
    for turn in range(TURNS):
        for name, way in ways.items():
            started, worked = time.perf_counter(), _worked()
            way(files)
            seconds[name][turn] = time.perf_counter() - started
            busy[name][turn] = _worked() - worked
            print(f"turn {turn + 1}, {name}: {len(files) / seconds[name][turn]:.0f} images/s")
    page = _page(files, seconds, busy)
    (DOCS / "INGEST.md").write_text(page, encoding="utf-8")
    print(page)


def decode_opencv(files: list[Path]) -> int:
    """What no reader can do without: the pixels of each file, by the decoder that MedVQ uses."""
    cv2.setNumThreads(1)
    return sum(
        cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_GRAYSCALE).shape[0] for file in files
    )


def decode_pillow(files: list[Path]) -> int:
    """The same, by the decoder that MONAI and most others use."""
    return sum(np.asarray(Image.open(file)).shape[0] for file in files)


def by_medvq(files: list[Path]) -> None:
    """As ingest reads."""
    listed = [ImageFiles((file,)) for file in files]
    for read in read_all(listed, Reader((SIDE, SIDE)), ReadCache(None)):
        if read.image is None:
            raise UserError(f"a file of the study cannot be read: {read.reason}")


def by_opencv(files: list[Path]) -> None:
    """:func:`decode_opencv` on all processors."""
    from benchmarks.ingest import decode_opencv  # by its module's name: this one runs as __main__

    _decode(decode_opencv, files)


def by_pillow(files: list[Path]) -> None:
    """:func:`decode_pillow` on all processors."""
    from benchmarks.ingest import decode_pillow  # as above

    _decode(decode_pillow, files)


def _decode(decode: Callable[[list[Path]], int], files: list[Path]) -> None:
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    list(map_in_processes(decode, chunks, processes=processors(), timeout=600))


def by_monai(files: list[Path]) -> None:
    """MONAI's transforms in this process."""
    chain = _chain()
    for file in files:
        chain(file)


def _chain() -> Callable[[Path], object]:
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Resize, ScaleIntensity

    steps = [LoadImage(image_only=True), EnsureChannelFirst(), Resize((SIDE, SIDE))]
    return Compose([*steps, ScaleIntensity()])


def _files() -> list[Path]:
    mirror = os.environ.get("DATA_MIRROR", "")
    files = sorted(Path(mirror, SET).glob("*/*.jp*g")) if mirror else []
    if not files:
        raise UserError(f"no files: set DATA_MIRROR to a folder that holds {SET}/")
    return files


def _worked() -> float:
    """Processor seconds of this process and of those that it has ended."""
    return sum(
        times.ru_utime + times.ru_stime for times in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN))
    )


def _page(files: list[Path], seconds: dict[str, np.ndarray], busy: dict[str, np.ndarray]) -> str:
    from medvq.flow import commit  # not needed where files are decoded

    sizes = np.array([Image.open(file).size for file in files])
    lines = [
        "# How fast images are read",
        "",
        f"Made by `make benchmark-ingest`. {platform.machine()}, {processors()} processors, Python "
        f"{platform.python_version()}; commit `{commit()}`. {len(set(files))} full-resolution "
        f"Kermany radiographs, {REPEATS} times over; median width {np.median(sizes[:, 0]):.0f}, "
        f"median height {np.median(sizes[:, 1]):.0f} pixels; read to {SIDE} x {SIDE}.",
        "",
        "MedVQ reads as ingest does: in processes of their own, with a checksum of each file, and "
        "their start counted; no cache is used. MONAI is `Compose([LoadImage, EnsureChannelFirst, "
        "Resize, ScaleIntensity])` in one process, imported beforehand, in which torch uses all "
        "processors. A decoder alone is that on all processors, with nothing done to the pixels. "
        "They take turns; ratios are of the same turn, the median over "
        f"{TURNS} turns with the smallest and largest. Processor time depends less than speed on "
        "what else the machine does.",
        "",
        "| | images/s | MedVQ's speed over it | processor ms an image | over MedVQ's |",
        "|---|---|---|---|---|",
    ]
    for name, taken in seconds.items():
        rate = np.median(len(files) / taken)
        context = np.median(1000 * busy[name] / len(files))
        faster, lighter = (_ratio(table[name], table["MedVQ"]) for table in (seconds, busy))
        lines.append(f"| {name} | {rate:.0f} | {faster} | {context:.1f} | {lighter} |")
    return "\n".join(lines) + "\n"


def _ratio(one: np.ndarray, other: np.ndarray) -> str:
    ratios = one / other
    return f"{np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]"


if __name__ == "__main__":
    run_study(main)
