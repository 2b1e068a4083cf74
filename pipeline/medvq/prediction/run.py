"""A run over new images: read ahead in worker processes, predicted batch by batch, kept, published.

Memory does not grow with the number of images: of those only paths are held.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from tqdm import tqdm

from medvq.code_hash import code_of
from medvq.errors import UserError
from medvq.images.cache import ReadCache
from medvq.images.reading import read_all
from medvq.prediction import table
from medvq.prediction.inputs import (
    MISALIGNED,
    Inputs,
    NewImage,
    TrainingSizes,
    kind_of_difference,
)
from medvq.prediction.journal import FORCE, SUFFIX, Journal, RunIdentity, locked
from medvq.prediction.reading import NewImageReader, NewImageResult
from medvq.storage.artifacts import Artifact, source, verify
from medvq.storage.publication import write_bytes

if TYPE_CHECKING:
    from medvq.prediction.dicom_results import DicomResults
    from medvq.prediction.predictor import Predictions, Predictor

PROVENANCE = ".provenance.json"
# Images that are predicted together; a run that is interrupted loses at most these.
BATCH = 256


@dataclass(frozen=True)
class Request:
    """What to predict, with what, and where to.

    Attributes
    ----------
    probe, pretrain, prior : artifacts; without ``prior`` nothing is said of how typical images are.
    out : the CSV file.
    dicom_output : ``sr`` writes a structured report of each DICOM image, ``sc`` a secondary capture
        of its evidence map; None writes none.
    """

    inputs: Inputs
    probe: Artifact
    pretrain: Artifact
    prior: Artifact | None
    out: Path
    device: str = "auto"
    dicom_output: str | None = None

    @property
    def dicom_folder(self) -> Path:
        """The folder of DICOM results."""
        return self.out.with_name(f"{self.out.stem}-dicom")

    def identity(self) -> RunIdentity:
        """Return what tells this run from others."""
        code = code_of("medvq.prediction.run")
        return RunIdentity(
            probe=self.probe.fingerprint,
            prior=self.prior.fingerprint if self.prior else "",
            inputs=self.inputs.digest(),
            options=self.dicom_output or "",
            code=hashlib.sha256(repr(code).encode()).hexdigest()[:16],
        )


@dataclass
class Outcome:
    """What a run has come to: images by status, and why some were refused or flagged."""

    out: Path
    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    dicom_results: int = 0
    seconds: float = 0.0
    computed: int = 0

    def add(self, rows: Sequence[table.Row]) -> None:
        """Count rows."""
        for row in rows:
            if row["status"] == table.REFUSED:
                self.refused[row["reason"]] += 1
                continue
            self.read += 1
            flags = [kind_of_difference(row["other_kind"])] if row["other_kind"] else []
            flags += ["out of distribution"] if row.get("untypical") == "true" else []
            self.flags.update(flags)
            self.flagged += bool(flags)
            self.dicom_results += row.get(table.DICOM_RESULT, "").endswith(".dcm")

    def to_json(self) -> dict[str, object]:
        """Return the object that ``JSON=1`` prints."""
        return {
            "read": self.read,
            "refused": self.refused.total(),
            "flagged": self.flagged,
            "out": str(self.out),
            "seconds": round(self.seconds, 1),
            "images_per_second": round(self.computed / max(self.seconds, 1e-9), 1),
        }


def predict(request: Request) -> Outcome:
    """Predict all images, or go on where a run of the same identity was interrupted.

    Raises
    ------
    UserError
        ``out`` is there already, a run of another identity was interrupted there, or DICOM results
        of this one are gone.
    """
    started = time.perf_counter()
    identity, out = request.identity(), request.out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out.parent} ({error.strerror})") from error
    with locked(out):
        journal_file = out.with_name(out.name + SUFFIX)
        outcome = Outcome(out)
        if _is_finished(out, identity):
            finished = list(_rows_of(out))
            _check_results(request, finished, out)
            outcome.add(finished)
            journal_file.unlink(missing_ok=True)
            print(f"{out} is up to date", file=sys.stderr)
            return outcome
        if request.dicom_output and request.dicom_folder.exists() and not journal_file.exists():
            raise UserError(f"the folder {request.dicom_folder} is there already: {FORCE}")
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        journal = Journal(journal_file, identity, now)
        for rows in journal.rows():
            _check_results(request, rows, journal_file)
            outcome.add(rows)
        names = _compute(request, journal, outcome)
        _publish(request, identity, journal, outcome, names)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _compute(request: Request, journal: Journal, outcome: Outcome) -> tuple[str, ...]:
    """Predict what the journal lacks; return the names of the columns."""
    waiting = request.inputs.images[journal.batches * BATCH :]
    if journal.batches:
        print(f"going on after {len(request.inputs.images) - len(waiting)} images", file=sys.stderr)
    config = request.pretrain.config()
    with _read_ahead(waiting, NewImageReader.of(config)) as batches:
        # While the first files are read: torch takes seconds to import.
        rows_of = _row_maker(request, journal.started)
        with tqdm(
            total=len(request.inputs.images),
            initial=len(request.inputs.images) - len(waiting),
            desc="predicting",
            unit=" images",
            mininterval=1.0,
        ) as bar:
            for start, results in enumerate(batches):
                images = waiting[start * BATCH : start * BATCH + len(results)]
                rows = rows_of(images, results)
                journal.append(rows)
                outcome.add(rows)
                outcome.computed += len(rows)
                bar.update(len(rows))
    return rows_of.columns


def _row_maker(request: Request, started: str) -> RowMaker:
    from medvq.datasets.manifest import read_manifest
    from medvq.prediction.predictor import Predictor

    predictor = Predictor(request.probe, request.pretrain, request.prior, request.device)
    ingest = source(request.pretrain, "ingest")
    verify(ingest, "manifest.csv")
    axes = len(request.pretrain.config().ingest.read_shape)
    sizes = TrainingSizes.of(read_manifest(ingest.folder / "manifest.csv"), axes)
    results = None
    if request.dicom_output:
        from medvq.prediction.dicom_results import KINDS

        request.dicom_folder.mkdir(exist_ok=True)
        kind = KINDS[request.dicom_output]
        results = kind(request.dicom_folder, request.probe, predictor, started)
    return RowMaker(predictor, sizes, results)


class RowMaker:
    """Makes the rows of the table, and DICOM results where these are wanted."""

    def __init__(
        self, predictor: Predictor, sizes: TrainingSizes, dicom: DicomResults | None
    ) -> None:
        self._predictor, self._sizes, self._dicom = predictor, sizes, dicom
        self.columns = table.columns(predictor.classes, dicom_output=dicom is not None)

    def __call__(
        self, images: Sequence[NewImage], results: Sequence[NewImageResult]
    ) -> list[table.Row]:
        """Return one row for each image."""
        import numpy as np

        rows = [
            table.refused(image, result)
            if result.image is None
            else table.read(image, result, result.other_kind or self._sizes.differs(result.size))
            for image, result in zip(images, results, strict=True)
        ]
        pixels = [result.image for result in results if result.image is not None]
        if not pixels:
            return rows
        predictions = self._predictor(np.stack(pixels))
        read = (n for n, result in enumerate(results) if result.image is not None)
        for place, number in enumerate(read):
            rows[number] |= self._predicted(predictions, place)
            if predictions.misaligned[place]:
                rows[number]["other_kind"] = rows[number]["other_kind"] or MISALIGNED
            if self._dicom is not None and images[number].dicom:
                rows[number][table.DICOM_RESULT] = self._dicom.write(images[number], rows[number])
        return rows

    def _predicted(self, predictions: Predictions, place: int) -> table.Row:
        value, classes = float(predictions.values[place]), self._predictor.classes
        if predictions.probabilities is None:
            row = {"predicted": table.number(value)}
        else:
            shares = zip(classes, predictions.probabilities[place], strict=True)
            row = {table.probability_column(name): table.probability(p) for name, p in shares}
            row["class"] = classes[int(value)]
        if predictions.scores is not None and self._predictor.check is not None:
            score = float(predictions.scores[place])
            row["out_of_distribution_score"] = table.probability(score)
            row["untypical"] = str(score > self._predictor.check.threshold).lower()
        return row


@contextmanager
def _read_ahead(
    images: Sequence[NewImage], reader: NewImageReader
) -> Iterator[Iterator[list[NewImageResult]]]:
    """Read batches of images in a thread, one batch ahead; the first at once."""
    stop = Event()
    results = _read(images, reader)

    def batch() -> list[NewImageResult]:
        part = []
        for result in islice(results, BATCH):
            part.append(result)
            if stop.is_set():
                break
        return part

    def rest() -> Iterator[list[NewImageResult]]:
        waiting = first
        while part := waiting.result():
            waiting = pool.submit(batch)
            yield part

    with ThreadPoolExecutor(1, "reading") as pool:
        first = pool.submit(batch)
        try:
            yield rest()
        finally:
            stop.set()
            pool.submit(results.close)


def _read(images: Sequence[NewImage], reader: NewImageReader) -> Generator[NewImageResult]:
    for result in read_all([image.files for image in images], reader, ReadCache(None)):
        # Of a process that died there is a plain one.
        yield result if isinstance(result, NewImageResult) else NewImageResult(**vars(result))


def _publish(
    request: Request,
    identity: RunIdentity,
    journal: Journal,
    outcome: Outcome,
    names: Sequence[str],
) -> None:
    """Write the table aside and rename it, after what it was made with."""
    out = request.out
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    hashed = hashlib.sha256()
    try:
        with aside.open("wb") as stream:
            for text in _texts(names, journal):
                hashed.update(text)
                stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        provenance = _provenance(request, identity, outcome) | {"sha256": hashed.hexdigest()}
        content = json.dumps(provenance, indent=2).encode()
        write_bytes(out.with_name(out.stem + PROVENANCE), content)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    journal.file.unlink()


def _texts(names: Sequence[str], journal: Journal) -> Iterator[bytes]:
    yield table.as_text(names, [dict(zip(names, names, strict=True))]).encode()
    for rows in journal.rows():
        yield table.as_text(names, rows).encode()


def _provenance(request: Request, identity: RunIdentity, outcome: Outcome) -> dict[str, object]:
    """Return what the table was made with; nothing in it names a file of the input."""
    from medvq import __version__
    from medvq.summaries import ProbeSummary

    summary = request.probe.summary(ProbeSummary)
    return {
        "run": asdict(identity),
        "medvq": __version__,
        "probe": str(request.probe.folder),
        "dataset": request.probe.record.dataset,
        "classes": summary.classes,
        "threshold": summary.threshold,
        "label_fraction": summary.label_fraction,
        "read": outcome.read,
        "refused": dict(outcome.refused),
        "flagged": outcome.flagged,
    }


def _is_finished(out: Path, identity: RunIdentity) -> bool:
    """Say whether the table of this run is there; refuse any other file."""
    if not out.exists():
        return False
    file = out.with_name(out.stem + PROVENANCE)
    try:
        provenance = json.loads(file.read_bytes())
        same = provenance["run"] == asdict(identity)
        with out.open("rb") as stream:
            whole = provenance["sha256"] == hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        same = whole = False
    if same and whole:
        return True
    raise UserError(f"{out} is there already, and not from the same run: {FORCE}")


def _check_results(request: Request, rows: Sequence[table.Row], file: Path) -> None:
    """Refuse to go on where DICOM results are gone that ``file`` names."""
    names = [row.get(table.DICOM_RESULT, "") for row in rows]
    written = [name for name in names if name.endswith(".dcm")]
    lost = sum(not (request.dicom_folder / name).exists() for name in written)
    if lost:
        raise UserError(
            f"{request.dicom_folder} lacks {lost} DICOM results that {file} counts: remove both, "
            "or name another file (OUT=)"
        )


def _rows_of(out: Path) -> Iterator[table.Row]:
    import csv

    with out.open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream)
