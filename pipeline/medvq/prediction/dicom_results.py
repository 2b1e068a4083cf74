"""Predictions as DICOM objects, which belong to the patient and the study of the image.

A structured report after TID 1500 (DICOM PS3.16), by highdicom. It copies the patient's and the
study's attributes from the header of the image: without them no archive can file it. They are in
the object alone, and in no name, message or table.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from medvq import __version__
from medvq.images.formats.parsing import parse
from medvq.prediction import table
from medvq.prediction.inputs import NewImage
from medvq.prediction.predictor import Predictor
from medvq.storage.artifacts import Artifact, write_bytes

MANUFACTURER = "MedVQ"
# Of private codes (PS3.16, 8.2); values of codes have at most 16 characters, meanings 64.
_SCHEME = "99MEDVQ"
_VALUE, _MEANING = 16, 64
# Without these an object cannot say which image it is of.
_REFERENCE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_SERIES_NUMBER = 9701  # of few archives' own; the UID is what tells series apart


class DicomResults:
    """Writes a structured report for each image, under its name in the table.

    Parameters
    ----------
    folder : of the reports.
    started : when the run was begun, which is the time of the reports: a run that goes on after an
        interruption writes the same ones.
    """

    def __init__(self, folder: Path, probe: Artifact, predictor: Predictor, started: str) -> None:
        self._folder, self._probe, self._predictor = folder, probe, predictor
        self._started = dt.datetime.fromisoformat(started)

    def write(self, image: NewImage, row: Mapping[str, str]) -> str:
        """Write the report of an image; return the name of its file, or why there is none."""
        evidence = [parse(path, stop_before_pixels=True) for path in image.files.paths]
        missing = [name for name in _REFERENCE if not all(one.get(name) for one in evidence)]
        if missing:
            return f"none: the image states no {missing[0]}"
        report = self._report(evidence, row)
        report.ContentDate = f"{self._started:%Y%m%d}"
        report.ContentTime = f"{self._started:%H%M%S}"
        report.InstanceCreationDate, report.InstanceCreationTime = (
            report.ContentDate,
            report.ContentTime,
        )
        stream = io.BytesIO()
        report.save_as(stream)
        name = f"{image.name.replace('/', '_')}.dcm"
        write_bytes(self._folder / name, stream.getvalue())
        return name

    def _report(self, evidence: Sequence[Dataset], row: Mapping[str, str]) -> Dataset:
        first = evidence[0]
        of_run = [self._probe.fingerprint, str(self._started), str(first.StudyInstanceUID)]
        content = MeasurementReport(
            observation_context=self._context(),
            procedure_reported=codes.LN.CTUnspecifiedBodyRegion
            if first.get("Modality") == "CT"
            else _code("image", "Imaging procedure of the referenced image"),
            imaging_measurements=[self._measurements(evidence, row)],
            title=codes.DCM.ImagingMeasurementReport,
        )
        return ComprehensiveSR(
            evidence=evidence,
            content=content[0],
            series_instance_uid=generate_uid(entropy_srcs=[*of_run, "series"]),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=generate_uid(entropy_srcs=[*of_run, str(first.SOPInstanceUID)]),
            instance_number=1,
            manufacturer=MANUFACTURER,
            is_complete=True,
            is_final=False,
            is_verified=False,
        )

    def _context(self) -> ObservationContext:
        device = DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=[self._probe.fingerprint]),
            name=MANUFACTURER,
            manufacturer_name=MANUFACTURER,
            model_name=f"probe {self._probe.fingerprint}",
        )
        return ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, device))

    def _measurements(
        self, evidence: Sequence[Dataset], row: Mapping[str, str]
    ) -> MeasurementsAndQualitativeEvaluations:
        record, summary = self._probe.record, self._predictor.summary
        classes, check = self._predictor.classes, self._predictor.check
        algorithm = AlgorithmIdentification(
            name="MedVQ linear probe",
            version=f"{__version__}, commit {record.commit or 'unknown'}",
            parameters=[
                f"probe {record.fingerprint} of {record.dataset}",
                f"label fraction {summary.label_fraction:g}",
                *([f"threshold {summary.threshold:.6f}"] if len(classes) == 2 else []),
                *([f"untypical beyond {check.threshold:.6f} bits per code"] if check else []),
            ],
            family=codes.DCM.ArtificialIntelligence,
            manufacturer=MANUFACTURER,
        )
        evaluations = []
        if classes:
            evaluations.append(QualitativeEvaluation(_code("class", "Class"), _class(row["class"])))
        if row.get("untypical"):
            typical = "untypical" if row["untypical"] == "true" else "typical"
            named = _code("typicality", "Typicality among the training images")
            evaluations.append(QualitativeEvaluation(named, _code(typical, typical)))
        if row.get("other_kind"):
            named = _code("other-kind", "Unlike the training images")
            evaluations.append(QualitativeEvaluation(named, _class(row["other_kind"])))
        uid = str(evidence[0].SOPInstanceUID)
        return MeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(
                uid=generate_uid(entropy_srcs=[record.fingerprint, uid]), identifier="MedVQ"
            ),
            algorithm_id=algorithm,
            measurements=self._numbers(row),
            qualitative_evaluations=evaluations,
            source_images=[
                SourceImageForMeasurementGroup(one.SOPClassUID, one.SOPInstanceUID)
                for one in evidence
            ],
        )

    def _numbers(self, row: Mapping[str, str]) -> list[Measurement]:
        one = codes.UCUM.NoUnits
        numbers: list[tuple[Any, str, Any]] = [
            (_class(name, "Probability of "), row[table.probability_column(name)], one)
            for name in self._predictor.classes
        ]
        if not numbers:
            named = _class(self._predictor.summary.task, "Predicted ")
            numbers.append((named, row["predicted"], one))
        if row.get("out_of_distribution_score"):
            named = _code("ood-score", "Out-of-distribution score, bits per code")
            numbers.append((named, row["out_of_distribution_score"], one))
        return [Measurement(name, float(value), unit) for name, value, unit in numbers]


def _code(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value[:_VALUE], _SCHEME, meaning[:_MEANING])


def _class(name: str, before: str = "") -> CodedConcept:
    """Return a code for a name of the user's: a hash of it, since values of codes are short."""
    text = before + name
    return _code(hashlib.sha256(text.encode()).hexdigest(), text)
