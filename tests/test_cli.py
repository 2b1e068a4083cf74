"""The command line: quick to answer, one line for what is the user's to mend."""

import argparse
import errno
import gc
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import pytest
import torch
from medvq.__main__ import main as program
from medvq.cli import _notices, _page, add_options, main, status
from medvq.errors import Notice, UserError
from medvq.stages import STAGES
from tqdm import tqdm

HEAVY = ("torch", "monai", "mlflow", "pandas", "cv2", "sklearn", "matplotlib")

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DATASET", "DATA_ROOT", "DATA_MIRROR", "ARTIFACTS", "MLSTAGES_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    # Downloads fail at once, without the pauses before they are tried again.
    monkeypatch.setattr("medvq.datasets.download.time.sleep", lambda _: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """An artifact that no failure may touch."""
    folder = tmp_path / "artifacts" / "tiny" / "ingest" / "0000"
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text('{"finished": "yes"}')
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    """All but the cache of what was read, which may be deleted at any time."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path: path.read_bytes() for path in files}


def test_artifacts_are_found_by_the_name_that_a_configuration_gives(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.yaml").write_text("name: lungs\nsource: {kind: image_folder}\n")
    (tmp_path / "a.png").touch()
    monkeypatch.setenv("DATASET", "study.yaml")
    assert "artifacts/lungs/extract/latest is no" in refused(capsys, "suggest-labels")
    assert "artifacts/lungs/probe/latest is no" in refused(capsys, "explain", "a.png")
    (tmp_path / "other").mkdir()
    other = ("--artifacts", "other")
    assert "other/lungs/probe/latest is no" in refused(capsys, "predict", "--in", "a.png", *other)
    monkeypatch.setenv("DATASET", "gone.yaml")
    assert "gone.yaml" in refused(capsys, "suggest-labels")
    assert "artifacts/gone" not in refused(capsys, "similar", "a.png")


@pytest.mark.parametrize(
    ("stage", "option"),
    [
        ("explain", "out"), ("similar", "out"), ("suggest-labels", "out"), ("preview", "out"),
        ("ingest", "artifacts"), ("ingest", "data-root"), ("report", "artifacts"),
    ],
)  # fmt: skip
def test_a_file_is_not_taken_for_a_folder_to_write_to(
    tmp_path: Path, capsys: Captured, stage: str, option: str
) -> None:
    file = tmp_path / "own.png"
    file.write_text("own")
    image = ["a.png"] if stage in ("explain", "similar", "preview") else []
    (tmp_path / "link").symlink_to("gone")
    for folder in (file, file / "below", tmp_path / "link"):
        line = refused(capsys, stage, *image, f"--{option}", str(folder))
        place = folder if folder.name == "link" else file
        assert f"{place} is no folder, and is to be written to: choose another (OUT," in line
    assert file.read_text() == "own"


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "--in", "{}"), ("predict", "--in", "a.png", "--out", "{}.csv"),
        ("explain", "{}"), ("explain", "a.png", "--out", "{}"), ("explain", "a", "--probe", "{}"),
        ("ingest", "--artifacts", "{}"), ("ingest", "--data-root", "{}"), ("bundle", "--out", "{}"),
    ],
)  # fmt: skip
def test_a_path_that_no_file_can_have_is_one_line(
    capsys: Captured, arguments: tuple[str, ...]
) -> None:
    Path("circle").symlink_to("circle")
    Path("circle.csv").symlink_to("circle.csv")
    reasons = {"circle": "too many levels of symbolic links", "a" * 300: "file name too long"}
    for path, reason in reasons.items():
        line = refused(capsys, *(one.format(path) for one in arguments))
        assert f"{path[:200]}" in line
        assert f" cannot be used ({reason})" in line
        assert len(line) < 400


@pytest.mark.parametrize("name", ["ARTIFACTS", "DATA_ROOT"])
def test_a_folder_of_the_environment_that_none_can_be_is_one_line(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "a" * 300)
    assert "cannot be used (file name too long)" in refused(capsys, "ingest")


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE='abc' is no number; unset it"),
        ({"RANK": ""}, "RANK='' is no number; unset it"),
        ({"RANK": "1"}, "RANK=1 is not below WORLD_SIZE=1; unset it"),
        ({"WORLD_SIZE": "0"}, "RANK=0 is not below WORLD_SIZE=0; unset it"),
    ],
)
def test_variables_of_torchrun_that_it_cannot_have_set_are_refused(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert named in refused(capsys, "ingest", "--config", "phantom")
    assert named in refused(capsys, "predict", "--in", "a.png")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("a file is damaged"), "a file is damaged"),
        (MemoryError(), "there is too little memory for it"),
        (OSError(errno.EFBIG, "File too large"), "cannot write to .* .file too large."),
    ],
)
def test_a_result_stands_without_a_page(tmp_path: Path, error: Exception, reason: str) -> None:
    def page(_: Any) -> Path:
        raise error

    result: Any = SimpleNamespace(
        stage=SimpleNamespace(page=page), artifact=SimpleNamespace(folder=tmp_path / "a/b/c")
    )
    with pytest.warns(Notice, match=f"there is no report: {reason}"):
        assert _page(result) is None


def test_a_backend_of_figures_that_is_not_there_does_not_matter() -> None:
    code = "import sys; sys.argv[1:] = ['ingest', '--config', 'none.yaml']\n"
    code += "from medvq.__main__ import main; print(main()); import medvq.report.plots"
    environment = os.environ | {"MPLBACKEND": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "2\n")


def configure(tmp_path: Path, source: str) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(f"name: tiny\nsource: {source}\ningest: {{image_size: 64}}\n")
    return str(file)


def refused(capsys: Captured, *arguments: str) -> str:
    """The one line that the command ends in."""
    try:
        status: object = main(arguments)
    except SystemExit as exit_:  # argparse
        status = exit_.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    *progress, line = err.splitlines()
    assert line.startswith("medvq: ")
    assert not any(earlier.startswith("medvq: ") for earlier in progress)
    return line


def test_help_is_complete_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from medvq.cli import main\n"
        f"for arguments in (['--help'], *([name, '--help'] for name in {list(STAGES)})):\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    *text, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    shown = "\n".join(text)
    for stage in STAGES:
        assert f"usage: medvq {stage}" in shown
    for option in ("--config", "--set", "--data-root", "--data-mirror", "--artifacts", "--device"):
        assert shown.count(f"  {option}") >= len(STAGES)
    assert "Train the VQ-VAE on" in shown


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("dream",), "dream"),
        ((), "STAGE"),
        (("ingest", "--colour", "red"), "--colour"),
        (("ingest", "--device", "tpu"), "tpu"),
        (("ingest", "--config", "nowhere"), "nowhere.yaml"),
        (("ingest", "--config", "gone/mine.yaml"), "gone/mine.yaml"),
        (("ingest", "--set", "ingest.colour=1"), "ingest.colour"),
        (("ingest", "--set", "seed"), "seed"),
        *((("probe", "--set", f"probe.label_fraction={v}"), v) for v in ("0", "-1", "2", "abc")),
        (("probe", "--probe", "a/probe/latest"), "unrecognized arguments: --probe"),
        (("probe", "--settings", "seed"), "'seed' is not of the form key=value"),
        *(
            (one, "no file or folder is named")
            for one in (
                ("predict", "--in", ""),
                ("explain", ""),
                ("similar", ""),
                ("ingest", "--artifacts", ""),
                ("bundle", "--out", ""),
                ("report", "--probe", ""),
            )
        ),
        *((("similar", "a", "--number", n), f"{n} is no whole number") for n in ("0", "1001", "x")),
        (("mlflow-ui", "--port", "65536"), "65536 is no whole number from 1 to 65535"),
    ],
)
def test_a_command_that_cannot_be_followed(
    capsys: Captured, arguments: tuple[str, ...], named: str
) -> None:
    assert named in refused(capsys, *arguments)


def test_settings_keep_what_stands_in_quotes_or_brackets() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    text = "seed=1 name='a b'  x=[1, 2] y=\"c  d\" z=patient's"
    parsed = parser.parse_args(["--set", "seed=0", "--settings", text, "--settings", ""])
    assert parsed.set == ["seed=0", "seed=1", "name='a b'", "x=[1, 2]", 'y="c  d"', "z=patient's"]


@pytest.mark.parametrize(
    ("value", "expected"), [("", False), ("0", False), ("no", False), ("1", True)]
)
def test_code_is_accepted_where_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: bool
) -> None:
    monkeypatch.setenv("ACCEPT_CODE", value)
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert parser.parse_args([]).accept_code is expected


@pytest.mark.parametrize("stage", ["ingest", "probe"])
@pytest.mark.parametrize(
    ("source", "prepare", "named"),
    [
        ("{kind: kermany}", "", "data/kermany"),
        ("{kind: kermany}", "data/kermany/", "data/kermany"),
        ("{kind: kermany}", "data/kermany/images/a.png", "data/kermany"),
        ("{kind: kermany}", "data/kermany/chest_xray/train/NORMAL/a.png", "data/kermany"),
        ("{kind: image_folder}", "", "data/tiny"),
        ("{kind: image_folder}", "data/tiny/notes.txt", "data/tiny"),
        ("{kind: image_folder, folder: mine}", "", "mine"),
        ("{kind: image_folder, folder: mine, labels: l.csv}", "mine/a.png", "l.csv"),
    ],
)
def test_data_that_is_missing_empty_or_laid_out_otherwise(
    capsys: Captured, tmp_path: Path, earlier: Path, source: str, prepare: str, named: str,
    stage: str,
) -> None:  # fmt: skip
    if prepare.endswith("/"):
        (tmp_path / prepare).mkdir(parents=True)
    elif prepare:
        (tmp_path / prepare).parent.mkdir(parents=True)
        (tmp_path / prepare).touch()
    before = contents(earlier)
    assert named in refused(capsys, stage, "--config", configure(tmp_path, source))
    assert contents(tmp_path / "artifacts") == before


def test_missing_kermany_says_what_goes_where(capsys: Captured) -> None:
    line = refused(capsys, "ingest", "--data-root", "here", "--data-mirror", "there")
    for part in ("here/kermany", "there/kermany", "DATA_MIRROR", "GB"):
        assert part in line


class Untracked:
    """Stands in for MLflow's run, which takes seconds to begin."""

    run_id = "none"

    def __init__(self, *_: object) -> None:
        self.report = None

    def start(self, *_: object) -> None:
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        return None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "no space left on device"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "read-only file system"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_run_that_ends_in_the_middle(
    capsys: Captured,
    tmp_path: Path,
    earlier: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    reason: str,
) -> None:
    def run(context: Any) -> None:
        (context.folder / "half").touch()
        raise error

    run.__module__ = STAGES["ingest"].run.__module__
    monkeypatch.setitem(STAGES, "ingest", replace(STAGES["ingest"], run=run))
    monkeypatch.setattr("medvq.storage.tracking.Tracking", Untracked)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").touch()
    config = configure(tmp_path, "{kind: image_folder, folder: mine}")
    before = contents(earlier)
    assert main(["ingest", "--config", config]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    *_, line = err.splitlines()
    assert line.startswith("medvq: ")
    assert reason in line
    assert contents(earlier) == before
    finished = list((tmp_path / "artifacts").rglob("stage.json"))
    assert finished == [earlier / "stage.json"]


def test_the_last_line_is_the_reason_and_not_a_progress_bar(
    capsys: Captured, tmp_path: Path
) -> None:
    def command() -> int:
        bar = tqdm(range(5))
        bar.__dict__["itself"] = bar  # so that it outlives the error
        for _ in bar:
            raise UserError("no images in it")
        return 0

    assert status(command, tmp_path) == 2
    gc.collect()
    assert capsys.readouterr().err.splitlines()[-1] == "medvq: no images in it"


def test_a_bug_is_not_passed_off_as_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("medvq.flow.run", run)
    with pytest.raises(ZeroDivisionError):
        main(["ingest", "--config", configure(tmp_path, "{kind: phantom}")])


def test_any_name_of_a_file_can_be_printed() -> None:
    script = (
        "from medvq.cli import main\n"
        "assert main(['ingest', '--config', 'caf\\udce9']) == 2\n"
        "print('/data/\\xe9/caf\\udce9')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
    )  # fmt: skip
    assert done.stdout == b"/data/\\xe9/caf\\udce9\n"
    assert b"no configuration" in done.stderr


def test_a_notice_is_one_line_and_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    usual = warnings.showwarning
    with _notices():
        for message in ("look at this", "look at this", "and that"):
            warnings.warn(Notice(message), stacklevel=1)
    assert capsys.readouterr().err == "medvq: look at this\nmedvq: and that\n"
    assert warnings.showwarning is usual


def test_cuda_where_there_is_none_is_one_line(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = configure(tmp_path, "{kind: phantom}")
    line = refused(capsys, "pretrain", "--config", config, "--device", "cuda")
    assert line == "medvq: DEVICE=cuda, but torch finds no CUDA device; use DEVICE=auto or cpu"


def test_a_folder_that_is_gone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["report", "--dataset", "tiny"]) == 2
    assert capsys.readouterr().err == (
        "medvq: the folder it was started in is gone; go to another (cd)\n"
    )


def test_a_program_that_ends_looks_for_no_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_threshold()
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("medvq.cli.main", lambda: 3)
    gc.unfreeze()
    try:
        assert program() == 3
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() > before
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def test_a_folder_of_runs_that_is_not_there_is_said_and_not_taken_for_an_empty_one(
    tmp_path: Path, capsys: Captured
) -> None:
    line = refused(capsys, "mlflow-sync", "--artifacts", str(tmp_path / "none"))
    assert f"there is no folder {tmp_path}/none; name that of the runs (ARTIFACTS=)" in line
    assert not list(tmp_path.iterdir())
