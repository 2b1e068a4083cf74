"""Images that look alike: the nearest training images of other patients.

Images are compared by the components of their features that the probe's encoding keeps, which is
fitted without labels, at unit length: their distance is 1 less the cosine. Faiss [1]_ searches:
exactly, or, where there are very many images, by a graph of near neighbours (HNSW [2]_), which
misses few of them and answers in milliseconds.

References
----------
.. [1] Douze et al.: The Faiss library. 2024, arXiv 2401.08281.
.. [2] Malkov, Yashunin: Efficient and robust approximate nearest neighbor search using Hierarchical
   Navigable Small World graphs. IEEE TPAMI 42 (2020) 824.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medvq.datasets.pseudonyms import pseudonym, subject_key
from medvq.errors import UserError
from medvq.images.formats import is_dicom
from medvq.images.formats.identity import identify
from medvq.storage.feature_store import read_feature, read_keys, read_metadata

if TYPE_CHECKING:
    from medvq.explain.sources import ProbeSources

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]
# Up to so many images the exact search takes milliseconds as well.
EXACT = 100_000
# Links of each image in the graph, and the candidates that building and searching it look at.
_LINKS, _CANDIDATES_BUILT, _CANDIDATES = 32, 80, 128
_BATCH = 10_000
_DIGITS = 16  # of an image_id: those of the checksum, before the number of a copy


class NeighbourIndex:
    """Vectors to search among.

    Parameters
    ----------
    vectors : (N, D); they are brought to unit length.
    exact : whether the search is exact; None: up to :data:`EXACT` vectors.

    Raises
    ------
    UserError
        Faiss is not installed.
    """

    def __init__(self, vectors: Floats, exact: bool | None = None) -> None:
        faiss = _faiss()
        width = vectors.shape[1]
        self.exact = len(vectors) <= EXACT if exact is None else exact
        if self.exact:
            self._index = faiss.IndexFlatIP(width)
        else:
            self._index = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = _CANDIDATES_BUILT
        for start in range(0, len(vectors), _BATCH):
            self._index.add(_unit(vectors[start : start + _BATCH]))

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what :meth:`write` wrote."""
        index = cls.__new__(cls)
        index._index = _faiss().read_index(str(file))
        index.exact = isinstance(index._index, _faiss().IndexFlat)
        return index

    def write(self, file: Path) -> None:
        """Write the index, vectors included."""
        _faiss().write_index(self._index, str(file))

    def search(
        self, queries: Floats, number: int, excluded: Rows | None = None
    ) -> tuple[Rows, Floats]:
        """Return the nearest vectors of each query (Q, D), nearest first.

        Parameters
        ----------
        excluded : rows that are not returned.

        Returns
        -------
        Rows and cosine distances, (Q, number); there are fewer columns where there are fewer
        vectors.
        """
        faiss = _faiss()
        excluded = np.unique([] if excluded is None else excluded).astype(np.int64)
        number = min(number, self._index.ntotal - len(excluded))
        if number < 1:
            return np.empty((len(queries), 0), np.intp), np.empty((len(queries), 0), np.float32)
        options: dict[str, Any] = {"sel": faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded))}
        if self.exact:
            parameters = faiss.SearchParameters(**options)
        else:
            parameters = faiss.SearchParametersHNSW(efSearch=max(_CANDIDATES, number), **options)
        cosines, rows = self._index.search(_unit(queries), number, params=parameters)
        return rows.astype(np.intp), 1 - cosines


@dataclass(frozen=True)
class LookAlikes:
    """The training images of other patients that are most like an image.

    Attributes
    ----------
    image_id : the beginning of the file's checksum.
    image : as read, at the size of the training images.
    neighbours : nearest first: ``rank``, ``image_id``, ``class_name``, ``distance``, and ``row`` in
        the cache of images.
    images : how many training images there are of other patients.
    exact : whether none was missed.
    """

    image_id: str
    image: NDArray[np.uint8]
    neighbours: pd.DataFrame
    images: int
    exact: bool


def look_alikes(
    sources: ProbeSources, file: Path, number: int, subject: str | None = None
) -> LookAlikes:
    """Find the training images of other patients that are most like an image file.

    Neither the image itself, nor a copy of its file, nor an image of a patient whom a copy is of is
    returned. Of a DICOM file the patient is known by PatientID.

    Parameters
    ----------
    subject : the patient, where known: as the user names them, or as the manifest does.

    Raises
    ------
    UserError
        The file cannot be read, or there is no image of another patient.
    """
    result, prepared = sources.read(file)
    assert result.image is not None
    query = encode(sources, sources.features(prepared))
    keys = read_keys(sources.store)
    train = np.flatnonzero(keys["split"] == "train")
    patients = _patients(file, subject) | _subjects_of_copies(keys, result.sha256)
    excluded = np.flatnonzero(keys["subject_id"].iloc[train].isin(patients))
    index = _index(sources, train)
    (rows,), (distances,) = index.search(query, number, excluded)
    if not len(rows):
        raise UserError("there is no training image of another patient to compare with")
    found = keys.iloc[train[rows]]
    names = pd.Series(read_metadata(sources.store).classes, dtype=object)
    labels = found["label"].map(names).fillna("") if len(names) else ""
    table = pd.DataFrame(
        {
            "rank": np.arange(1, len(rows) + 1),
            "image_id": found["image_id"].to_numpy(str),
            "class_name": np.asarray(labels),
            "distance": distances,
            "row": train[rows],
        }
    )
    others = len(train) - len(excluded)
    return LookAlikes(result.sha256[:_DIGITS], result.image, table, others, index.exact)


def encode(sources: ProbeSources, features: NDArray[Any]) -> Floats:
    """Return the components (N, K) that images are compared by, of features (N, D)."""
    encoding = sources.pipeline[:-1]
    batches = [features[start : start + _BATCH] for start in range(0, len(features), _BATCH)]
    return np.concatenate([np.asarray(encoding.transform(b), np.float32) for b in batches])


def stored_vectors(sources: ProbeSources, rows: Rows) -> Floats:
    """Return the components of ``rows`` of the feature store."""
    columns = [read_feature(sources.store, name)[rows] for name in sources.pipeline[0].names]
    return encode(sources, np.concatenate(columns, axis=1))


def _subjects_of_copies(keys: pd.DataFrame, sha256: str) -> set[str]:
    """Return the subjects that copies of a file are filed under."""
    copies = keys["image_id"].str[:_DIGITS] == sha256[:_DIGITS]
    return set(keys.loc[copies, "subject_id"])


def _patients(file: Path, subject: str | None) -> set[str]:
    """Return the names that the manifest may have for the patient of a file."""
    identity = identify(file) if is_dicom(file) else None
    stated = [subject, identity and (identity.subject or identity.study)]
    names = [name for name in stated if name]
    return {*names, *(pseudonym(name, subject_key()) for name in names)}


def _index(sources: ProbeSources, rows: Rows) -> NeighbourIndex:
    """Return an index of ``rows`` of the store; one that takes minutes to build is kept."""
    if len(rows) <= EXACT:
        return NeighbourIndex(stored_vectors(sources, rows))
    cache = sources.artifact.folder.resolve().parents[2] / ".cache" / "neighbours"
    file = cache / f"{sources.artifact.fingerprint}.faiss"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{os.getpid()}")
        NeighbourIndex(stored_vectors(sources, rows)).write(aside)
        aside.replace(file)
    return NeighbourIndex.read(file)


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(length, 1e-12), np.float32)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "look-alikes are searched for by Faiss, which is not installed: pip install "
            "'medvq[similar]' (or faiss-cpu)"
        ) from error
    return faiss
