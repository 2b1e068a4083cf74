"""Commands that read artifacts find one flipped bit in whatever they read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from medvq.cli import main

pytestmark = pytest.mark.usefixtures("kept_workers")
FEATURES = "extract/latest/features.parquet/part-00.parquet"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("explain", "ingest/latest/images.npy"),
        ("explain", FEATURES),
        ("similar", "ingest/latest/originals.npy"),
        ("similar", FEATURES),
        ("suggest-labels", "ingest/latest/manifest.csv"),
        ("suggest-labels", "ingest/latest/originals.npy"),
        ("report", "ingest/latest/images.npy"),
        ("report", "ingest/latest/manifest.csv"),
        ("report", "extract/latest/figures/atlas.png"),
        ("report", "probe/latest/predictions.parquet"),
    ],
)
def test_a_flipped_bit_in_what_a_command_reads_is_one_line(
    folder: Path,
    probe: Path,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
) -> None:
    artifacts = folder / "artifacts"
    out = ["--out", str(tmp_path)]
    options = {
        "explain": [str(files[0]), "--probe", str(probe), *out],
        "similar": [str(files[0]), "--probe", str(probe), *out],
        "suggest-labels": ["--dataset", "tiny", "--artifacts", str(artifacts), "--all", *out],
        "report": ["--dataset", "tiny", "--artifacts", str(artifacts)],
    }
    more = ["--number", "3"] if command == "suggest-labels" else []
    (artifacts / "tiny/report/report.html").unlink(missing_ok=True)
    file = artifacts / "tiny" / name
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    try:
        assert main([command, *options[command], *more]) == 2
    finally:
        file.write_bytes(whole)
    stage, _, inside = name.split("/", 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{inside} was changed or damaged since it was written" in line
    assert f"make it anew: medvq {stage} --force" in line
    assert not (tmp_path / "to-label.csv").exists()


@pytest.mark.parametrize("stage", ["prior", "probe"])
def test_the_damaged_record_of_an_artifact_that_is_not_needed_is_told_and_stops_nothing(
    folder: Path, probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    artifacts = folder / "artifacts"
    options = {
        "prior": ["explain", str(next(folder.glob("data/phantom-*/images/*.dcm")))],
        "probe": ["report", "--dataset", "tiny", "--artifacts", str(artifacts)],
    }
    options["prior"] += ["--probe", str(probe), "--out", str(tmp_path)]
    damaged = artifacts / "tiny" / stage / "fedcba9876543210"
    damaged.mkdir(parents=True)
    (damaged / "stage.json").write_text("{}")
    (artifacts / "tiny/report/report.html").unlink(missing_ok=True)
    try:
        assert main(options[stage]) == 0
    finally:
        shutil.rmtree(damaged)
    err = capsys.readouterr().err
    assert f"medvq: not used: {damaged}/stage.json was changed or damaged" in err
    assert f"where nothing needs it, remove {damaged}" in err


@pytest.mark.parametrize("command", ["explain", "similar"])
def test_what_is_no_file_is_not_waited_for(
    probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        options = [str(path), "--probe", str(probe), "--out", str(tmp_path / "out")]
        assert main([command, *options]) == 2
        assert f"medvq: {path} is no file: name the file of an image" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["explain", "similar"])
def test_an_image_that_is_not_there_is_told_before_anything_is_loaded(
    probe: Path, tmp_path: Path, command: str
) -> None:
    for name, said in (("none.png", f"{tmp_path}/none.png"), ("DOE.dcm", "the file")):
        script = (
            "import sys\n"
            "from medvq.cli import main\n"
            f"options = ['--probe', {str(probe)!r}]\n"
            f"assert main([{command!r}, {str(tmp_path / name)!r}, *options]) == 2\n"
            "assert not {'torch', 'sklearn', 'matplotlib'} & sys.modules.keys()"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"{said}: the file is not there" in done.stderr
        assert "DOE" not in done.stderr
