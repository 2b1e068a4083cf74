"""The file of a fitted probe: a scikit-learn pipeline from features to a prediction.

It is safetensors: the fitted arrays of every step, and one JSON object in the header, which names
the steps in order with their settings. Nothing in it can be executed, and equal probes have equal
bytes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline

from medvq.config.base import StrictModel
from medvq.errors import UserError
from medvq.method.encodings import (
    BlockScaler,
    CodeHistogram,
    NormScaler,
    WithinImageWhitening,
)
from medvq.storage.encoded_features import FeatureColumns

FILE = "probe.safetensors"
_HEADER = "probe"
_ANEW = "make it anew: medvq probe --force (make linear-probe FORCE=1)"
# Reading takes as much memory as the file has bytes. Probes have megabytes, those of raw volumes
# gigabytes.
_MAX_BYTES = 4 * 2**30
_MAX_HEADER = 100_000
# Numbers beyond these are of no fit, and would overflow where they are multiplied.
_LARGEST = 1e20
_Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Array:
    """A fitted array.

    Attributes
    ----------
    axes : what each axis counts. ``in`` and ``out`` are the columns that a step takes and returns;
        axes of a step with one name are equally long.
    low, high : the range of its values; only infinity itself admits what is not finite.
    kinds : its possible types, as safetensors calls them.
    """

    axes: tuple[str, ...]
    low: float = -_LARGEST
    high: float = _LARGEST
    kinds: tuple[str, ...] = ("F32", "F64")


@dataclass(frozen=True)
class _Step:
    """A type of step: its settings, and all that it predicts with."""

    type: type[Any]
    settings: tuple[str, ...] = ()
    arrays: dict[str, _Array] = field(default_factory=dict)


# Rows of components have norm 1.
_COMPONENTS = _Array(("out", "in"), -1.01, 1.01)
_STEPS = {
    step.type.__name__: step
    for step in (
        _Step(FeatureColumns, ("names",)),
        _Step(CodeHistogram, ("size", "shape", "grids")),
        # A column that never varies is divided by infinity.
        _Step(
            BlockScaler,
            ("widths",),
            {"mean_": _Array(("in",)), "scale_": _Array(("in",), 1e-13, np.inf)},
        ),
        # Earlier versions of scikit-learn transform nothing without the variance.
        _Step(
            PCA,
            (),
            {
                "mean_": _Array(("in",)),
                "components_": _COMPONENTS,
                "explained_variance_": _Array(("out",), 0),
            },
        ),
        _Step(TruncatedSVD, (), {"components_": _COMPONENTS}),
        _Step(WithinImageWhitening, (), {"directions_": _Array(("out", "in"))}),
        _Step(NormScaler, (), {"factor_": _Array((), 1e-20, 1e8)}),
        _Step(
            LogisticRegression,
            (),
            {
                "classes_": _Array(("classes",), 0, 2**31, ("I64",)),
                "coef_": _Array(("scores", "in")),
                "intercept_": _Array(("scores",)),
            },
        ),
        _Step(Ridge, (), {"coef_": _Array(("in",)), "intercept_": _Array(())}),
    )
}
_ORDERS = {
    ("FeatureColumns", *encoding, "NormScaler", model)
    for components in (("BlockScaler", "PCA"), ("CodeHistogram", "TruncatedSVD"))
    for encoding in (components, (*components, "WithinImageWhitening"))
    for model in ("LogisticRegression", "Ridge")
}
_Name = Annotated[str, Field(pattern="^[a-z0-9_]{1,100}$")]
_Width = Annotated[int, Field(ge=1, le=2**31)]
_Side = Annotated[int, Field(ge=1, le=2**12)]


class _StepHeader(StrictModel):
    """A step of the header; which settings it has follows from its type."""

    type: str
    names: list[_Name] = Field([], min_length=1, max_length=1000)
    widths: list[_Width] = Field([], min_length=1, max_length=1000)
    size: Annotated[int, Field(ge=1, le=2**24)] = 1
    shape: tuple[_Side, ...] = Field((), min_length=1, max_length=3)
    grids: tuple[_Side, ...] = Field((), min_length=1, max_length=12)

    def settings(self) -> dict[str, Any]:
        """Return the settings that the file has."""
        return self.model_dump(include=self.model_fields_set - {"type"})


class _Header(StrictModel):
    """What the file says of its probe."""

    format: Literal[1]
    steps: list[_StepHeader] = Field(max_length=8)


def save_probe(probe: Pipeline, folder: Path) -> None:
    """Write a probe, from features to a prediction, into a folder.

    Raises
    ------
    UserError
        It is too large.
    """
    steps: list[dict[str, Any]] = []
    arrays: _Arrays = {}
    for _, step in probe.steps:
        name = type(step).__name__
        settings = {setting: getattr(step, setting) for setting in _STEPS[name].settings}
        steps.append({"type": name, **settings})
        for attribute in _STEPS[name].arrays:
            arrays[f"{name}.{attribute}"] = np.asarray(getattr(step, attribute))
    header = json.dumps({"format": 1, "steps": steps}, sort_keys=True)
    # Nothing is written that could not be read.
    if sum(array.nbytes for array in arrays.values()) + _MAX_HEADER > _MAX_BYTES:
        raise UserError(
            f"the probe has more than {_MAX_BYTES} bytes: lower probe.components or choose smaller "
            "probe.features"
        )
    _assemble(_Header.model_validate_json(header), arrays)
    save_file(_by_rows(arrays), folder / FILE, metadata={_HEADER: header})


def load_probe(folder: Path) -> Pipeline:
    """Read the probe of a folder; nothing in the file is executed.

    Returns
    -------
    A pipeline that takes the features which its first step names, as one array (N, D) or as a table
    with an array in every cell. It has ``predict_proba``, or ``predict`` alone for a number. It
    predicts, to the last bit, what the probe predicted that was saved.

    Raises
    ------
    UserError
        The file is missing or damaged, or holds anything that no probe of MedVQ has.
    """
    file = folder / FILE
    if not file.exists():
        raise UserError(f"{folder} holds no {FILE}; {_ANEW}")
    try:
        header, arrays = _read(file)
        return _assemble(header, arrays)
    except (OSError, SafetensorError, ValidationError):
        reason = "it cannot be parsed"
    except ValueError as error:
        reason = str(error)
    raise UserError(f"{file} is damaged or no probe of this version: {reason}; {_ANEW}")


def _read(file: Path) -> tuple[_Header, _Arrays]:
    """Return what a file holds; safetensors refuses sizes that its bytes do not have."""
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes")
    arrays: _Arrays = {}
    with safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata() or {}
        if metadata.keys() != {_HEADER} or len(metadata[_HEADER]) > _MAX_HEADER:
            raise ValueError("its header is not that of a probe")
        header = _Header.model_validate_json(metadata[_HEADER])
        for stored in sorted(opened.keys()):
            name = stored.removesuffix(".T")
            step, _, attribute = name.partition(".")
            known = _STEPS[step].arrays.get(attribute) if step in _STEPS else None
            if known is None or name in arrays:
                raise ValueError("it holds an array that no probe has")
            if opened.get_slice(stored).get_dtype() not in known.kinds:
                raise ValueError(f"{name} is of another type")
            array = opened.get_tensor(stored)
            arrays[name] = array.T if stored != name else array
    return header, arrays


def _by_rows(arrays: _Arrays) -> _Arrays:
    """Return the arrays as they are written: row by row, transposed under a name with ``.T``.

    Arrays that lie in memory column by column do so again when they are read: the order of a sum,
    and with it the last bits of a prediction, may depend on it.
    """
    written = {}
    for name, array in arrays.items():
        if array.ndim == 2 and array.strides[0] < array.strides[1]:
            written[f"{name}.T"] = array.T.copy(order="C")
        else:
            written[name] = array.copy(order="C")
    return written


def _assemble(header: _Header, arrays: _Arrays) -> Pipeline:
    """Return the pipeline of checked steps; a :class:`ValueError` says what is wrong."""
    if tuple(step.type for step in header.steps) not in _ORDERS:
        raise ValueError("its steps are not those of a probe")
    expected = {f"{step.type}.{name}" for step in header.steps for name in _STEPS[step.type].arrays}
    if arrays.keys() != expected:
        raise ValueError("its arrays are not those of its steps")
    _check_blocks(*header.steps[:2])
    steps, width = [], 0
    for described in header.steps:
        known = _STEPS[described.type]
        if described.settings().keys() != set(known.settings):
            raise ValueError(f"{described.type} has other settings")
        step = known.type(**described.settings())
        width, width_out = _widths(described, width)
        fitted = {name: arrays[f"{described.type}.{name}"] for name in known.arrays}
        lengths = {"in": width}
        for name, array in fitted.items():
            _check(f"{described.type}.{name}", array, known.arrays[name], lengths)
            # NumPy's numbers are wider than Python's where they meet an array of single precision.
            setattr(step, name, array if array.ndim else array.item())
        if not fitted:
            step.fit(None)
        elif any("in" in array.axes for array in known.arrays.values()):
            step.n_features_in_ = width
        width = lengths.get("out", width_out)
        steps.append(step)
    if isinstance(steps[-1], LogisticRegression):
        _check_classes(steps[-1])
    return make_pipeline(*steps)


def _check_blocks(columns: _StepHeader, encoding: _StepHeader) -> None:
    if len(columns.names) != (len(encoding.widths) or 1):
        raise ValueError(f"{encoding.type} is of another number of feature sets")


def _widths(step: _StepHeader, width: int) -> tuple[int, int]:
    """Return how many columns a step takes, ``width`` if not set, and how many it returns."""
    if step.widths:
        return sum(step.widths), sum(step.widths)
    if step.shape:
        cells = sum(grid ** len(step.shape) for grid in step.grids)
        if (width := math.prod(step.shape)) > 2**20:
            raise ValueError("its latent grid is too large")
        return width, cells * step.size
    return width, width


def _check(name: str, array: NDArray[Any], known: _Array, lengths: dict[str, int]) -> None:
    """Compare an array with what it must be; lengths of further axes are added to ``lengths``."""
    if array.ndim != len(known.axes) or any(
        length < 1 or lengths.setdefault(axis, length) != length
        for axis, length in zip(known.axes, array.shape, strict=True)
    ):
        raise ValueError(f"the shape of {name} does not fit")
    if not ((known.low <= array) & (array <= known.high)).all():
        raise ValueError(f"{name} has values out of range")


def _check_classes(model: LogisticRegression) -> None:
    classes = len(model.classes_)
    if classes < 2 or (np.diff(model.classes_) <= 0).any():
        raise ValueError("its classes are not two or more different ones in order")
    if len(model.coef_) != (1 if classes == 2 else classes):
        raise ValueError("it has other classes than scores")
