"""Encoders that MedVQ did not make (the section ``encoder``): files to functions of images.

To load a network of the kind ``safetensors+python`` is to execute a Python file. Its name comes
from the configuration that the user runs. An artifact records the configuration that it was made
with, so :func:`load_external` compares the files with the checksums that the artifact recorded:
what runs again is what ran when the user ran it.
"""

from __future__ import annotations

import hashlib
import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from medvq.config.encoder import (
    ExternalEncoder,
    OnnxEncoder,
    PythonEncoder,
    TableEncoder,
    TorchscriptEncoder,
)
from medvq.datasets.columns import purpose_of
from medvq.errors import UserError
from medvq.method.features import Floats, pool_to_grid
from medvq.wording import counted

EXTERNAL = "external"
"""The name of the feature set."""
_NAMED = 5  # images of a table that a message names
_Network = Callable[[Tensor], Any]


def fingerprint(encoder: ExternalEncoder) -> dict[str, str]:
    """Return the SHA-256 of the files of an encoder, by the names of the settings.

    Raises
    ------
    UserError
        A file is not there.
    """
    names = ("file", "python") if isinstance(encoder, PythonEncoder) else ("file",)
    return {f"encoder.{name}": _sha256(name, getattr(encoder, name)) for name in names}


def _sha256(name: str, file: str) -> str:
    try:
        with Path(file).expanduser().open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"encoder.{name}={file} cannot be read: {error.strerror}") from error


class ExternalFeatures:
    """The features of prepared images by an encoder that MedVQ did not make.

    Parameters
    ----------
    grid : feature maps are pooled to so many cells along each axis.
    """

    def __init__(
        self,
        encoder: TorchscriptEncoder | OnnxEncoder | PythonEncoder,
        grid: int,
        device: torch.device,
    ) -> None:
        self.encoder, self.grid, self.device = encoder, grid, device
        self.width: int | None = None
        try:
            self.network = self._load()
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever a file of the user's own raises
            raise self._unusable("does not load", error) from error
        self.mean = torch.tensor(encoder.mean, device=device)[:, None, None]
        self.std = torch.tensor(encoder.std, device=device)[:, None, None]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Floats:
        """Return the features (B, width) of images (B, C, height, width) in [0, 1].

        Raises
        ------
        UserError
            The network refuses the images, or returns anything else than finite numbers of one
            width.
        """
        try:
            output = self.network(self._inputs(images))
        except Exception as error:
            raise self._unusable("refuses the images", error) from error
        if isinstance(output, list | tuple) and output:
            output = output[0]
        axes = 4 if self.encoder.output == "map" else 2
        if not isinstance(output, Tensor) or output.ndim != axes or len(output) != len(images):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            expected = "(batch, channels, height, width)" if axes == 4 else "(batch, width)"
            raise UserError(
                f"{self._name()} returns {shape} for {len(images)} images, not {expected}; set "
                "encoder.output to vector or map"
            )
        flat = pool_to_grid(output, self.grid) if axes == 4 else output.float().cpu().numpy()
        if self.width not in (None, flat.shape[1]):
            raise UserError(
                f"{self._name()} returns {flat.shape[1]} numbers for an image, and returned "
                f"{self.width} before"
            )
        self.width = flat.shape[1]
        if not np.isfinite(flat).all():
            raise UserError(f"{self._name()} returns numbers that are not finite")
        return flat

    def _inputs(self, images: Tensor) -> Tensor:
        """Return images as the network wants them."""
        config = self.encoder
        images = images.to(self.device)
        if images.shape[1] != config.input_channels:
            grey = images.mean(1, keepdim=True)
            images = grey.expand(-1, config.input_channels, -1, -1)
        size = (config.input_size,) * 2
        if tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return (images * config.scale - self.mean) / self.std

    def _load(self) -> _Network:
        file = str(Path(self.encoder.file).expanduser())
        if isinstance(self.encoder, OnnxEncoder):
            return _onnx(file)
        if isinstance(self.encoder, TorchscriptEncoder):
            scripted: nn.Module = torch.jit.load(file, map_location=self.device)
            return scripted.eval()
        built = runpy.run_path(str(Path(self.encoder.python).expanduser()))
        if self.encoder.function not in built:
            raise UserError(f"{self.encoder.python} has no function '{self.encoder.function}'")
        network = built[self.encoder.function]()
        if not isinstance(network, nn.Module):
            raise UserError(
                f"{self.encoder.python}: '{self.encoder.function}' returns no torch.nn.Module"
            )
        network.load_state_dict(load_file(file))
        return network.to(self.device).eval()

    def _name(self) -> str:
        return f"encoder.file={self.encoder.file} ({self.encoder.kind})"

    def _unusable(self, what: str, error: BaseException) -> UserError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return UserError(f"{self._name()} {what}: {reason}")


def _onnx(file: str) -> _Network:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("encoder.kind=onnx needs onnxruntime: pip install 'medvq[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # images are encoded in as many threads as there are cores
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        output: Tensor = torch.from_numpy(session.run(None, {name: images.cpu().numpy()})[0])
        return output

    return run


def load_external(
    encoder: ExternalEncoder, grid: int, device: torch.device, recorded: Mapping[str, str]
) -> ExternalFeatures:
    """Load the encoder of an artifact, whose files are those that it was made with.

    Parameters
    ----------
    recorded : the inputs of the artifact; see :func:`fingerprint`.

    Raises
    ------
    UserError
        The encoder is a table, which knows no new images; or a file is missing or another one.
    """
    if isinstance(encoder, TableEncoder):
        raise UserError(
            f"encoder.file={encoder.file} is a table of the images in it: no new image can be "
            "encoded"
        )
    for name, checksum in fingerprint(encoder).items():
        if recorded.get(name) != checksum:
            raise UserError(f"{name} is another file than the features were made with")
    return ExternalFeatures(encoder, grid, device)


def read_embeddings(encoder: TableEncoder, manifest: pd.DataFrame) -> NDArray[np.float32]:
    """Return the embeddings of a table, (images, width), in the order of a manifest.

    Raises
    ------
    UserError
        An image has no row, or several, or numbers that are not finite; or the widths differ.
    """
    table, name = _read_table(encoder), f"encoder.file={encoder.file}"
    key = encoder.key or encoder.join
    if key not in table:
        # Its columns are not shown: without a header line they are the values of the first row.
        hint = "; has it one column only, or is it not separated by commas?"
        raise UserError(
            f"{name} has no column '{key}'; set encoder.key{hint if table.shape[1] == 1 else ''}"
        )
    if table.shape[1] == 1:
        raise UserError(f"{name} has no column beside '{key}'")
    column = "image_id" if encoder.join == "image_id" else "path"
    wanted = manifest[column].astype(str)
    if nameless := int((wanted == "").sum()):
        raise UserError(
            f"{name}: manifest.csv has no path of {counted(nameless, 'image')}, since that of a "
            "DICOM file may name a patient; set encoder.join to image_id"
        )
    keys = table[key].astype(str)
    if (twice := keys.duplicated().to_numpy()).any():
        # By row, since a key may be the name of a file.
        rows = ", ".join(str(row + 1) for row in np.flatnonzero(twice)[:_NAMED])
        raise UserError(f"{name} has several rows of one image: row {rows}")
    missing = ~wanted.isin(keys)
    if missing.any():
        # A path may name a patient; the identifier of an image does not.
        ids = ", ".join(manifest.loc[missing, "image_id"].astype(str)[:_NAMED])
        raise UserError(
            f"{name} has no row of {counted(int(missing.sum()), 'image')} (image_id {ids}, ...); "
            f"'{key}' is compared with the column '{column}' of manifest.csv of the ingest artifact"
        )
    values = _numbers(encoder, table.drop(columns=key), name)
    at = pd.Index(keys).get_indexer(pd.Index(wanted))
    chosen = values[at]
    if not (finite := np.isfinite(chosen).all(1)).all():
        ids = ", ".join(manifest["image_id"].to_numpy(str)[~finite][:_NAMED])
        raise UserError(f"{name} has numbers that are not finite, of the images: {ids}")
    return chosen


def _read_table(encoder: TableEncoder) -> pd.DataFrame:
    file = Path(encoder.file).expanduser()
    key = encoder.key or encoder.join
    try:
        if file.suffix.lower() == ".csv":
            return pd.read_csv(file, dtype={key: str})
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"encoder.file={encoder.file} is no CSV or Parquet file: {reason}"
        ) from error


def _numbers(encoder: TableEncoder, table: pd.DataFrame, name: str) -> NDArray[np.float32]:
    columns = list(encoder.columns or table.columns)
    if absent := [column for column in columns if column not in table]:
        raise UserError(f"{name} has no column '{absent[0]}' (encoder.columns)")
    if not encoder.columns:
        _check_names(columns, name)
    if len(columns) == 1 and table[columns[0]].dtype == object:
        values = _lists(table[columns[0]], name)
    else:
        words = [c for c in columns if not pd.api.types.is_numeric_dtype(table[c])]
        if words:
            raise UserError(
                f"{name}: column '{words[0]}' holds no numbers; name those that do in "
                "encoder.columns"
            )
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            values = table[columns].to_numpy(np.float32)
    if not values.shape[1]:
        raise UserError(f"{name}: its lists hold no numbers")
    if encoder.width not in (None, values.shape[1]):
        raise UserError(f"{name} has {values.shape[1]} numbers an image, not {encoder.width}")
    return values


def _check_names(columns: Sequence[object], name: str) -> None:
    """Refuse columns that are no part of an embedding by their names: they may tell the label."""
    for column in map(str, columns):
        is_row = re.fullmatch(r"Unnamed: \d+|index", column)
        if purpose := "number of the row" if is_row else purpose_of(column):
            raise UserError(
                f"{name}: column '{column}' is the {purpose} by its name, and may tell the label; "
                "name the columns of the embedding in encoder.columns"
            )


def _lists(column: pd.Series[Any], name: str) -> NDArray[np.float32]:
    """Return the lists of numbers in a column as rows."""
    rows: list[NDArray[np.float32]] = []
    for number, value in enumerate(column, 1):
        try:
            row = np.asarray(value, np.float32)
        except (TypeError, ValueError):
            row = np.asarray(np.nan, np.float32)
        if row.ndim != 1:
            raise UserError(f"{name}, row {number}: '{column.name}' is no list of numbers")
        rows.append(row)
        if len(row) != len(rows[0]):
            raise UserError(
                f"{name}, row {number}: {len(row)} numbers, where row 1 has {len(rows[0])}"
            )
    return np.stack(rows)
