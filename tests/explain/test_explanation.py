"""The command ``explain`` on what the smallest phantom flow left."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import medvq
import numpy as np
import pandas as pd
import pytest
from medvq.cli import main
from medvq.explain.explanation import Explainer
from medvq.explain.sources import ProbeSources
from medvq.images.formats import Window, read_image
from medvq.images.formats.notes import recorded
from medvq.images.resizing import to_bytes
from PIL import Image

pytestmark = pytest.mark.usefixtures("kept_workers")


def explain(file: Path, probe: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["explain", str(file), "--probe", str(probe), "--out", str(out)]) == 0
    return capsys.readouterr().out.splitlines()


def test_an_image_is_explained_by_two_pictures_and_all_numbers(
    probe: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = explain(files[0], probe, tmp_path / "out", capsys)
    encoder = medvq.load_encoder(probe.parents[1] / "pretrain/latest", "cpu")
    table = encoder(files[:1])
    model = medvq.load_probe(probe)
    picture = Path(lines[-1])
    assert picture == (tmp_path / "out" / f"{table['image_id'][0]}.png")
    assert {one.name for one in picture.parent.iterdir()} == {
        picture.name, f"{picture.stem}.codes.png", f"{picture.stem}.json"
    }  # fmt: skip
    for file in (picture, picture.with_suffix(".codes.png")):
        with Image.open(file) as opened:
            assert np.ptp(np.asarray(opened)) == 255
    values = json.loads(picture.with_suffix(".json").read_text())
    logit = model.decision_function(table)[0]
    assert values["logits"] == pytest.approx([logit], abs=1e-5)
    assert values["intercept"][0] + np.sum(values["evidence"]) == pytest.approx(logit, abs=1e-5)
    of_codes = np.sum([one["evidence"] for one in values["codes"]])
    assert values["intercept"][0] + of_codes == pytest.approx(logit, abs=1e-5)
    probability = model.predict_proba(table)[0, 1]
    # Registration sums over a batch, whose size moves the last bits.
    assert values["probability"] == pytest.approx(probability, abs=1e-6)
    assert values["called"] == values["classes"][int(probability >= values["threshold"])]
    assert values["typicality"] is None
    assert lines[0].startswith(
        f"{values['called']} (probability of {values['classes'][1]} {probability:.3f}"
    )


def test_an_image_is_shown_with_the_window_of_the_training_images(
    probe: Path, files: list[Path]
) -> None:
    sources = ProbeSources(probe, "cpu")
    before = Explainer(sources)(files[0])
    sources.window = (1000.0, 500.0)
    after = Explainer(sources)(files[0])
    with recorded():
        shown = read_image(files[0], 1, Window(1000.0, 500.0, "LINEAR_EXACT"))
    np.testing.assert_array_equal(after.image, to_bytes(shown[0]))
    assert not np.array_equal(after.image, before.image)
    assert not np.array_equal(after.prepared, before.prepared)


def test_a_number_is_said_as_a_number(probe: Path, files: list[Path]) -> None:
    found = Explainer(ProbeSources(probe, "cpu"))(files[0])
    number = replace(found, classes=[], prediction={"predicted": 2788.0017}, called="2788.002")
    assert number.line() == f"predicted 2788.002; {found.typicality_text()}"


def test_no_name_of_a_dicom_file_is_written_or_printed(
    probe: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "Jane Roe 1970.dcm"
    shutil.copy(files[0], secret)
    lines = explain(secret, probe, tmp_path / "out", capsys)
    written = "".join(file.read_text("latin-1") for file in (tmp_path / "out").iterdir())
    names = "".join(file.name for file in (tmp_path / "out").iterdir())
    assert "Roe" not in written + names + "".join(lines)


def test_patches_show_their_code_in_training_images_of_different_patients(probe: Path) -> None:
    explainer = Explainer(ProbeSources(probe, "cpu"))
    table = pd.read_parquet(explainer.sources.store)
    codes = [int(code) for code in np.unique(np.stack(list(table["codes_0"])))][:4]
    found = explainer.patches(codes, 3)
    assert list(found) == codes
    for code, patches in found.items():
        assert len(patches) > 0
        rows = table.iloc[[row for row, _ in patches]]
        assert set(rows["split"]) == {"train"}
        assert rows["subject_id"].is_unique
        stored = rows["codes_0"].tolist()
        assert [grid[place] for grid, (_, place) in zip(stored, patches, strict=True)] == [
            code
        ] * len(patches)


@pytest.mark.parametrize("size", [(100, 40), (700, 900)])
def test_an_image_of_another_size_is_shown_in_its_own(
    probe: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    picture = tmp_path / "a.png"
    Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(picture)
    found = Explainer(ProbeSources(probe, "cpu"))(picture)
    assert found.image.shape == size
    assert found.misaligned  # noise is no radiograph
    assert "another kind" in found.line()
    for (first, last), side in zip(found.extent, size, strict=True):
        assert last - first > 0.3 * side


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.png", None, "missing.png"),
        ("text.png", b"no picture", "text.png"),
        ("a.nii", b"no volume", "a.nii"),
    ],
)
def test_a_file_that_is_no_image_is_refused_in_one_line(
    probe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    reason: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    arguments = ["explain", str(tmp_path / name), "--probe", str(probe)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert reason in error[0]
    assert not (tmp_path / "out").exists()


def test_without_a_probe_the_line_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image := tmp_path / "a.png").touch()
    assert main(["explain", str(image), "--probe", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"medvq: {tmp_path} is no finished artifact of the stage 'probe'; name another, or make "
        "one: medvq probe --config NAME\n"
    )
