"""One image explained: its evidence map, the codes that mattered, and how typical it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import Tensor

from medvq.evaluation.tasks import TASKS
from medvq.explain.evidence import Evidence, LinearProbe, extent_in_image, redistribute
from medvq.explain.sources import ProbeSources
from medvq.images.formats import Window, is_dicom, read_image
from medvq.images.formats.notes import recorded
from medvq.images.preparation import PreparedImages
from medvq.images.resizing import to_bytes
from medvq.method.features import FeatureMaps
from medvq.method.scaling import to_unit
from medvq.prior.code_prior import negative_log_likelihood
from medvq.prior.existing import find_prior
from medvq.prior.typicality import TYPICALITY, TypicalityCheck
from medvq.prior.weights import FILE, load_prior
from medvq.storage import artifacts
from medvq.storage.feature_store import read_feature, read_keys, read_metadata
from medvq.storage.publication import write_bytes

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
# Training images that codes are looked for in: evenly spaced, more would only take longer.
_SEARCHED = 20_000


class Typicality(NamedTuple):
    """The out-of-distribution score of an image in bits per code, and the threshold."""

    score: float
    threshold: float


@dataclass(frozen=True)
class CodeEvidence:
    """What the places of one code add to a logit.

    Attributes
    ----------
    code : its index in the coarsest codebook.
    places : where it stands in the image, as indices into the flattened grid.
    evidence : their sum for each of K logits; of a probe that reads other features than codes, that
        of what it reads there.
    """

    code: int
    places: list[int]
    evidence: list[float]


class Patch(NamedTuple):
    """A place of the coarsest grid in a training image, by its row in the cache of images."""

    row: int
    place: int


@dataclass(frozen=True)
class Explanation:
    """Why a probe says of an image what it says.

    Attributes
    ----------
    image_id : the beginning of the file's checksum.
    image : bytes (*spatial) or (3, height, width), as read and in its own size.
    prepared : bytes as the network saw it, ([C,] *image_shape).
    extent : where the grid lies in ``image``, see
        :func:`~medvq.explain.evidence.extent_in_image`.
    correlation : with the mean training image where it was registered; None without alignment.
    misaligned : whether that is too little, and the whole image was taken.
    classes : names; none where a number is predicted.
    logits : (K,) of two classes of the second one alone, of a number the number.
    intercept : (K,), the logits of the mean training image.
    parts, evidence : of each map and together, (K, *grid).
    prediction : the columns of a table, such as ``probability`` and ``threshold``.
    called : the name of the predicted class, or the number.
    typicality : None where no prior of these codes has been trained.
    codes : (*grid), the coarsest.
    notices : what the user should know of the file.
    """

    image_id: str
    file: str
    image: Bytes
    prepared: Bytes
    extent: list[tuple[float, float]]
    correlation: float | None
    misaligned: bool
    classes: list[str]
    logits: Floats
    intercept: Floats
    parts: list[Evidence]
    evidence: Floats
    prediction: dict[str, float]
    called: str
    typicality: Typicality | None
    codes: NDArray[np.int64]
    notices: tuple[str, ...]

    def codes_by_evidence(self) -> list[CodeEvidence]:
        """Return the codes of the image, those first whose places matter most."""
        flat = redistribute(self.evidence[None], self.codes.shape)[0]
        flat = flat.reshape(len(flat), -1)
        found = [
            CodeEvidence(int(code), places.tolist(), flat[:, places].sum(1).tolist())
            for code in np.unique(self.codes)
            for places in [np.flatnonzero(self.codes.ravel() == code)]
        ]
        return sorted(found, key=lambda one: -float(np.abs(one.evidence).max()))

    def line(self) -> str:
        """Return one line for people."""
        if not self.classes:
            return f"predicted {self.called}; {self.typicality_text()}"
        figures = ", ".join(f"{name} {value:.3f}" for name, value in self.prediction.items())
        if "threshold" in self.prediction:  # of two classes the second, whichever is called
            figures = figures.replace("probability", f"probability of {self.classes[1]}")
        return f"{self.called} ({figures}); {self.typicality_text()}"

    def typicality_text(self) -> str:
        """Return words on how far the image is from the training images."""
        if self.misaligned:
            return "it cannot be registered to the training images: it may be of another kind"
        if self.typicality is None:
            return "typicality unknown without a prior of the codes (make prior)"
        score, threshold = self.typicality
        how = "UNTYPICAL of" if score > threshold else "typical of"
        return f"{how} the training images ({score:.1f} bits per code, threshold {threshold:.1f})"

    def to_json(self) -> dict[str, Any]:
        """Return all but the pixels as JSON values; places count along the flattened grid."""
        typicality = None if self.typicality is None else self.typicality._asdict()
        return {
            "image_id": self.image_id,
            "file": self.file,
            "classes": self.classes,
            "called": self.called,
            **self.prediction,
            "logits": self.logits.tolist(),
            "intercept": self.intercept.tolist(),
            "evidence": self.evidence.tolist(),
            "parts": [{"features": name, "evidence": v.tolist()} for name, v in self.parts],
            "extent": [list(ends) for ends in self.extent],
            "registration": {"correlation": self.correlation, "failed": self.misaligned},
            "typicality": typicality,
            "untypical": None
            if typicality is None
            else typicality["score"] > typicality["threshold"],
            "codes": [vars(one) for one in self.codes_by_evidence()],
            "notices": list(self.notices),
        }


class Explainer:
    """Explains what a fitted probe says of images.

    Raises
    ------
    UserError
        The probe is not linear.
    """

    def __init__(self, sources: ProbeSources) -> None:
        self.sources = sources
        self.linear = LinearProbe.of(sources.pipeline, self._mean_histogram())

    def __call__(self, file: Path) -> Explanation:
        """Explain an image file.

        Raises
        ------
        UserError
            It cannot be read, or the probe has no evidence map.
        """
        encoder = self.sources.encoder
        result, prepared = self.sources.read(file)
        assert result.image is not None
        maps = encoder.maps(to_unit(prepared.images))
        found = self.linear.decompose(maps.codes[0].numpy(), arrays(maps))
        original = self._original(file)
        registration, aligned = prepared.registration, encoder.prepare.alignment is not None
        prediction, called = self._predict(prepared)
        return Explanation(
            image_id=result.sha256[:16],
            file="" if is_dicom(file) else str(file),
            image=original,
            prepared=prepared.images[0],
            extent=self._extent(registration.positions, original, result.image),
            correlation=float(registration.correlation[0]) if aligned else None,
            misaligned=aligned and bool(registration.failed[0]),
            classes=self._classes,
            logits=found.logits[0],
            intercept=found.intercept,
            parts=[Evidence(name, values[0]) for name, values in found.parts],
            evidence=found.total[0],
            prediction=prediction,
            called=called,
            typicality=self._typicality(maps.codes[0]),
            codes=maps.codes[0][0].numpy(),
            notices=result.notices,
        )

    @property
    def _classes(self) -> list[str]:
        return [] if isinstance(self.sources.pipeline[-1], Ridge) else self.sources.summary.classes

    def patches(self, codes: list[int], number: int) -> dict[int, list[Patch]]:
        """Return places of codes in training images, of ``number`` subjects each where there are.

        Nothing but pixels is to be shown of them.
        """
        keys = read_keys(self.sources.store)
        train = np.flatnonzero(keys["split"] == "train")
        train = train[:: -(-len(train) // _SEARCHED)]
        grids = read_feature(self.sources.store, "codes_0")[train]
        subjects = keys["subject_id"].to_numpy(str)[train]
        patches = {}
        for code in codes:
            found = pd.DataFrame(np.argwhere(grids == code), columns=["row", "place"])
            found = found.assign(subject=subjects[found["row"]]).drop_duplicates("subject")
            chosen = found.iloc[np.unique(np.linspace(0, len(found) - 1, number).astype(int))]
            pairs = zip(train[chosen["row"]], chosen["place"], strict=True)
            patches[code] = [Patch(int(row), int(place)) for row, place in pairs]
        return patches

    def _original(self, file: Path) -> Bytes:
        """Return an image in its own size, which a worker process has read without harm."""
        shown = self.sources.window
        window = Window(*shown, "LINEAR_EXACT") if shown else None
        with recorded():  # the notices are those of the first reading
            image = read_image(file, self.sources.encoder.config.ingest.channels, window)
        return to_bytes(image[0] if len(image) == 1 else image)

    def _extent(
        self, positions: Tensor, original: Bytes, as_read: Bytes
    ) -> list[tuple[float, float]]:
        axes = as_read.ndim - 1
        sides, read = original.shape[-axes:], as_read.shape[1:]
        position = positions[0].tolist()
        if self.sources.encoder.config.ingest.fit == "stretch":
            return extent_in_image(position, sides)
        # Padded or cropped evenly: the same pixels, counted from another edge.
        extent = extent_in_image(position, read)
        shifts = [(side - other) / 2 for side, other in zip(sides, read, strict=True)]
        return [(a + shift, b + shift) for (a, b), shift in zip(extent, shifts, strict=True)]

    def _mean_histogram(self) -> Floats | None:
        """Return the mean histogram of the training images, of a probe that reads codes."""
        if list(self.sources.pipeline[0].names) != ["codes_0"]:
            return None
        name = "histogram" if tuple(self.sources.pipeline[1].grids) == (1,) else "pyramid"
        train = (read_keys(self.sources.store)["split"] == "train").to_numpy()
        return np.asarray(read_feature(self.sources.store, name)[train].mean(0, dtype=np.float64))

    def _predict(self, prepared: PreparedImages) -> tuple[dict[str, float], str]:
        """Return the columns of a prediction, and the class that it is called or the number."""
        summary, classes = self.sources.summary, self.sources.summary.classes
        task = TASKS[summary.headline]
        features = self.sources.features(prepared).astype(np.float64)
        columns = task.columns(task.predict(self.sources.pipeline, features), summary.threshold)
        values = {name: float(np.ravel(value)[0]) for name, value in columns.items()}
        if "threshold" in values:
            return values, classes[int(values["probability"] >= values["threshold"])]
        predicted = values.pop("predicted")
        if "probability" in values:
            return values, classes[int(predicted)]
        return {"predicted": predicted}, f"{predicted:.7g}"

    def _typicality(self, codes: Tensor) -> Typicality | None:
        prior = find_prior(self.sources.extract)
        if prior is None:
            return None
        artifacts.verify(prior, FILE, TYPICALITY)
        model = load_prior(prior.folder, read_metadata(self.sources.store).model)
        bits = negative_log_likelihood(model, codes)
        threshold = TypicalityCheck.read(prior.folder).threshold
        return Typicality(float(TypicalityCheck.score(bits)[0]), threshold)


def arrays(maps: FeatureMaps) -> dict[str, list[NDArray[np.float32]]]:
    """Return the maps that are pooled as arrays."""
    return {name: [one.numpy() for one in parts] for name, parts in maps.pooled.items()}


def write_json(explanation: Explanation, file: Path) -> None:
    """Write all but the pixels."""
    write_bytes(file, json.dumps(explanation.to_json(), allow_nan=False).encode())
