"""Look-alikes: the nearest training images, never those of the same patient."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from medvq.cli import main
from medvq.errors import UserError
from medvq.explain.neighbours import LookAlikes, NeighbourIndex, look_alikes, stored_vectors
from medvq.explain.sources import ProbeSources
from numpy.typing import NDArray
from PIL import Image

pytestmark = pytest.mark.usefixtures("kept_workers")


def clusters(number: int, width: int = 16) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, width))
    vectors = centres[rng.integers(0, 20, number)] + 0.5 * rng.normal(size=(number, width))
    return vectors.astype(np.float32)


def brute_force(vectors: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine distance of every vector (N, D) to every query, (Q, N)."""
    one, other = (
        v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True)
        for v in (query, vectors)
    )
    return 1 - one @ other.T


def test_an_exact_index_finds_what_brute_force_finds() -> None:
    vectors = clusters(700)
    queries, excluded = vectors[:40] + 0.1, np.arange(30, 200)
    rows, distances = NeighbourIndex(vectors).search(queries, 9, excluded)
    expected = brute_force(vectors, queries)
    expected[:, excluded] = np.inf
    np.testing.assert_array_equal(rows, expected.argsort(1)[:, :9])
    np.testing.assert_allclose(distances, np.sort(expected, 1)[:, :9], atol=1e-6)


def test_an_approximate_index_misses_few_and_returns_none_that_is_excluded() -> None:
    vectors = clusters(4000)
    queries, excluded = vectors[::50] + 0.1, np.arange(0, 4000, 3)
    index = NeighbourIndex(vectors, exact=False)
    rows, _ = index.search(queries, 10, excluded)
    assert not np.isin(rows, excluded).any()
    expected = brute_force(vectors, queries)
    expected[:, excluded] = np.inf
    nearest = expected.argsort(1)[:, :10]
    found = [len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, nearest, strict=True)]
    assert np.mean(found) > 0.95


@pytest.mark.parametrize("exact", [True, False])
def test_an_index_that_was_written_finds_the_same(tmp_path: Path, exact: bool) -> None:
    vectors = clusters(500)
    index = NeighbourIndex(vectors, exact)
    index.write(tmp_path / "index")
    read = NeighbourIndex.read(tmp_path / "index")
    assert read.exact == exact
    for one, other in zip(index.search(vectors[:9], 5), read.search(vectors[:9], 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_fewer_vectors_than_wanted_are_all_returned_once() -> None:
    rows, distances = NeighbourIndex(clusters(5)).search(clusters(2), 9, np.array([1]))
    assert rows.shape == distances.shape == (2, 4)
    assert set(rows[0]) == {0, 2, 3, 4}
    assert NeighbourIndex(clusters(1)).search(clusters(2), 9, np.array([0]))[0].shape == (2, 0)


@pytest.fixture(scope="module")
def sources(probe: Path) -> ProbeSources:
    return ProbeSources(probe, "cpu")


@pytest.fixture(scope="module")
def manifest(sources: ProbeSources) -> pd.DataFrame:
    return pd.read_csv(sources.ingest.folder / "manifest.csv")


def file_of(row: pd.Series, files: list[Path]) -> Path:
    """Return the file of a row, which does not name it: DICOM files' names may name patients."""
    checksums = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return files[list(checksums).index(row["sha256"])]


def several_images(manifest: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the first image of each subject of a split who has several."""
    part = manifest[manifest["split"] == split]
    return part[part.duplicated("subject_id", keep=False)].drop_duplicates("subject_id")


def subjects(found: LookAlikes, manifest: pd.DataFrame) -> set[str]:
    return set(manifest.set_index("image_id").loc[found.neighbours["image_id"], "subject_id"])


def test_the_nearest_training_images_of_other_patients_are_found(
    sources: ProbeSources, manifest: pd.DataFrame, files: list[Path]
) -> None:
    train = manifest[manifest["split"] == "train"]
    for _, row in several_images(manifest, "train").head(3).iterrows():
        found = look_alikes(sources, file_of(row, files), len(manifest))
        assert found.image_id == row["image_id"]
        others = train[train["subject_id"] != row["subject_id"]]
        assert set(found.neighbours["image_id"]) == set(others["image_id"])
        assert found.images == len(others)
        # By the vectors of the store, the image's own among them.
        vectors = stored_vectors(sources, np.array([*others.index, row.name]))
        (distances,) = brute_force(vectors[:-1], vectors[-1:])
        expected = pd.Series(distances, others["image_id"]).loc[found.neighbours["image_id"]]
        assert found.neighbours["distance"].to_numpy() == pytest.approx(expected, abs=0.05)
        assert found.neighbours["distance"].is_monotonic_increasing
        assert found.exact
        names = manifest.set_index("image_id")["label_name"]
        assert (
            names.loc[found.neighbours["image_id"]] == list(found.neighbours["class_name"])
        ).all()


def test_a_new_image_of_a_known_patient_is_not_compared_with_the_patient(
    sources: ProbeSources,
    manifest: pd.DataFrame,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEDVQ_SUBJECT_KEY", "synthetic")  # with which the phantom's are named
    row = several_images(manifest, "train").iloc[0]
    header = pydicom.dcmread(file_of(row, files))
    pixels = header.pixel_array.copy()
    pixels[0, 0] += 1
    header.PixelData = pixels.tobytes()
    header.save_as(tmp_path / "new.dcm")
    found = look_alikes(sources, tmp_path / "new.dcm", len(manifest))
    assert row["subject_id"] not in subjects(found, manifest)
    # A picture of the same does not say whose it is; its user may.
    Image.fromarray((pixels / pixels.max() * 255).astype(np.uint8)).save(tmp_path / "new.png")
    unknown = look_alikes(sources, tmp_path / "new.png", len(manifest))
    assert row["subject_id"] in subjects(unknown, manifest)
    for name in (row["subject_id"], str(header.PatientID)):
        known = look_alikes(sources, tmp_path / "new.png", len(manifest), name)
        assert row["subject_id"] not in subjects(known, manifest)


def test_a_copy_of_a_test_image_is_compared_with_training_images_alone(
    sources: ProbeSources, manifest: pd.DataFrame, files: list[Path], tmp_path: Path
) -> None:
    row = manifest[manifest["split"] == "test"].iloc[0]
    shutil.copy(file_of(row, files), tmp_path / "copy.dcm")
    found = look_alikes(sources, tmp_path / "copy.dcm", 5)
    splits = manifest.set_index("image_id").loc[found.neighbours["image_id"], "split"]
    assert set(splits) == {"train"}


def test_the_command_writes_a_sheet_and_a_table_without_patients(
    probe: Path,
    manifest: pd.DataFrame,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    secret = tmp_path / "Jane Roe.dcm"
    shutil.copy(files[0], secret)
    arguments = ["similar", str(secret), "--probe", str(probe), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--number", "7"]) == 0
    output = capsys.readouterr().out
    sheet = Path(output.splitlines()[-1])
    with Image.open(sheet) as opened:
        assert np.ptp(np.asarray(opened)) == 255
    table = pd.read_csv(sheet.with_suffix(".csv"))
    assert list(table) == ["rank", "image_id", "class_name", "distance"]
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    text = output + sheet.with_suffix(".csv").read_text()
    assert "Roe" not in text
    assert not any(subject in text for subject in manifest["subject_id"])
    assert main([*arguments, "--number", "2", "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["image_id"] for row in values["neighbours"]] == table["image_id"].tolist()[:2]


def test_without_faiss_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'medvq\[similar\]'"):
        NeighbourIndex(clusters(3))
