"""Predictions as DICOM objects, which belong to the patient and the study of the image.

Structured reports after TID 1500 (DICOM PS3.16), or secondary captures of evidence maps, by
highdicom. It copies the patient's and the study's attributes from the header of the image: without
them no archive can file the object. They are in it alone, and in no name, message or table.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from highdicom.sc import SCImage
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
from numpy.typing import NDArray
from PIL import Image as Pillow
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from medvq import __version__
from medvq.errors import UnreadableImage
from medvq.explain.explanation import Explainer
from medvq.explain.sources import ProbeSources
from medvq.prediction import table
from medvq.prediction.dicom_headers import REFERENCE, ambiguous, header_to_copy
from medvq.prediction.inputs import NewImage
from medvq.prediction.predictor import Predictor
from medvq.report.evidence_figure import ExplainedImage, draw_explanation
from medvq.storage.artifacts import Artifact
from medvq.storage.publication import write_bytes

# It quotes what it finds unusual in a header, such as a name without a caret.
warnings.filterwarnings("ignore", module=r"(highdicom|medvq\.prediction\.dicom_results)(\.|$)")
MANUFACTURER = "MedVQ"
# Of private codes (PS3.16, 8.2); values of codes have at most 16 characters, meanings 64.
_SCHEME = "99MEDVQ"
_VALUE, _MEANING = 16, 64
_SERIES_NUMBER = 9701  # of few archives' own; the UID is what tells series apart


class DicomResults(ABC):
    """Writes a DICOM object for each image, under its name in the table.

    Parameters
    ----------
    folder : of the objects.
    started : when the run was begun, which is the time of the objects: a run that goes on after an
        interruption writes objects of the same UIDs.
    """

    description: ClassVar[str]

    def __init__(self, folder: Path, probe: Artifact, predictor: Predictor, started: str) -> None:
        self._folder, self._probe, self._predictor = folder, probe, predictor
        self._started = dt.datetime.fromisoformat(started)

    def write(self, image: NewImage, row: Mapping[str, str]) -> str:
        """Write the object of an image; return the name of its file, or why there is none."""
        try:
            evidence = [header_to_copy(path) for path in image.files.paths]
        except UnreadableImage as error:
            return f"none: {error}"
        missing = [name for name in REFERENCE if not all(one.get(name) for one in evidence)]
        if missing:
            return f"none: the image states no {missing[0]}"
        if several := next(filter(None, map(ambiguous, evidence)), ""):
            return f"none: the image states {several}"
        try:
            made = self._make(image, evidence, row)
        except KeyError as error:
            if error.args != (evidence[0].SOPClassUID,):
                raise
            return "none: highdicom knows no images of its SOP class"
        if isinstance(made, str):
            return f"none: {made}"
        made.ContentDate = made.InstanceCreationDate = f"{self._started:%Y%m%d}"
        made.ContentTime = made.InstanceCreationTime = f"{self._started:%H%M%S}"
        made.SeriesDescription = self.description
        stream = io.BytesIO()
        made.save_as(stream)
        name = f"{image.name.replace('/', '_')}.dcm"
        write_bytes(self._folder / name, stream.getvalue())
        return name

    @abstractmethod
    def _make(
        self, image: NewImage, evidence: Sequence[Dataset], row: Mapping[str, str]
    ) -> Dataset | str:
        """Return the object of an image with such headers, or why there is none."""

    def _identity(self, first: Dataset) -> dict[str, Any]:
        """Return what identifies the object; one run has one series in each study."""
        run = [self._probe.fingerprint, str(self._started), self.description]
        return {
            "series_instance_uid": generate_uid(entropy_srcs=[*run, str(first.StudyInstanceUID)]),
            "series_number": _SERIES_NUMBER,
            "sop_instance_uid": generate_uid(entropy_srcs=[*run, str(first.SOPInstanceUID)]),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
        }


class SecondaryCaptures(DicomResults):
    """Pictures of the image with the evidence that the probe found in it."""

    description = "MedVQ evidence map"

    def __init__(self, folder: Path, probe: Artifact, predictor: Predictor, started: str) -> None:
        super().__init__(folder, probe, predictor, started)
        self._explainer = Explainer(ProbeSources(probe.folder, predictor.encoder.device.type))

    def _make(
        self, image: NewImage, evidence: Sequence[Dataset], row: Mapping[str, str]
    ) -> Dataset | str:
        if image.files.series:
            return "there is no map of a volume that is made of several files"
        first = evidence[0]
        capture = SCImage.from_ref_dataset(
            first,
            self._picture(image.files.paths[0]),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),
            **self._identity(first),
        )
        capture.PatientOrientation = None  # it shows several pictures
        capture.DerivationDescription = (
            f"Evidence map of MedVQ {__version__}, probe {self._probe.fingerprint}"
        )
        source = Dataset()
        source.ReferencedSOPClassUID = first.SOPClassUID
        source.ReferencedSOPInstanceUID = first.SOPInstanceUID
        capture.SourceImageSequence = [source]
        return capture

    def _picture(self, file: Path) -> NDArray[np.uint8]:
        found = self._explainer(file)
        explained = ExplainedImage(
            found.image, found.extent, found.evidence, found.intercept, found.classes
        )
        drawn = self._folder / ".map.png"
        draw_explanation(drawn, explained, found.line())
        with Pillow.open(drawn) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        drawn.unlink()
        return pixels


class StructuredReports(DicomResults):
    """Structured reports with the probabilities, the class and where they come from."""

    description = "MedVQ predictions"

    def _make(
        self, image: NewImage, evidence: Sequence[Dataset], row: Mapping[str, str]
    ) -> Dataset:
        content = MeasurementReport(
            observation_context=self._context(),
            procedure_reported=_code("image", "Imaging procedure of the referenced image"),
            imaging_measurements=[self._measurements(evidence, row)],
            title=codes.DCM.ImagingMeasurementReport,
        )
        return ComprehensiveSR(
            evidence=evidence,
            content=content[0],
            is_complete=True,
            is_final=False,
            is_verified=False,
            **self._identity(evidence[0]),
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


KINDS: dict[str, type[DicomResults]] = {"sr": StructuredReports, "sc": SecondaryCaptures}
"""By the option that asks for them."""
