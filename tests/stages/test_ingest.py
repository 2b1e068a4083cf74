"""The stage ingest on tiny sets: splits, quarantine, audit, and the cache it leaves."""

import errno
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from factories.images import noise
from medvq.config import Config, ProbeConfig
from medvq.datasets.manifest import COLUMNS, read_manifest
from medvq.datasets.phantom import write_phantom
from medvq.errors import Notice, UserError
from medvq.report.audit_page import write_audit_page
from medvq.stages.ingest import INGEST
from medvq.storage.artifacts import StageContext
from medvq.summaries import IngestSummary, SplitCount
from PIL import Image

pytestmark = pytest.mark.usefixtures("kept_workers")
SMALL: dict[str, Any] = {
    "read_size": 64,
    "image_size": 32,
    "validation_fraction": 0.3,
    "swap": {"training_copies": 1},
}


def configured(source: dict[str, Any], **changes: Any) -> Config:
    return Config.model_validate(
        {
            "name": "tiny",
            "source": source,
            "ingest": SMALL | changes,
            "pretrain": {"widths": (8, 8, 8)},
        }
    )


def run(config: Config, out: Path, data_root: Path | None = None) -> IngestSummary:
    out.mkdir()
    return INGEST.run(StageContext(config, out, {}, data_root or out, None))


PHANTOM = configured({"kind": "phantom", "train_subjects": 20, "test_subjects": 10, "size": 64})


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def ingested(
    data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, IngestSummary]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVQ_SUBJECT_KEY", "tests only")
        out = tmp_path_factory.mktemp("ingest") / "first"
        return out, run(PHANTOM, out, data_root)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty subjects of two pictures each, the last ten of them for the test."""
    folder = tmp_path / "set"
    folder.mkdir()
    rows = []
    for subject, take in itertools.product(range(30), range(2)):
        draw(folder / f"{subject:02d}-{take}.png", 10 * subject + take)
        split, label = "test" if subject >= 20 else "train", ("ill", "well")[subject % 2]
        rows.append((f"{subject:02d}-{take}.png", f"subject {subject}", split, label))
    table = pd.DataFrame(rows, columns=["file", "subject", "split", "label"])
    table.to_csv(folder / "labels.csv", index=False)
    return folder


def draw(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:70, :60] / 30 - 1
    grey = 0.5 + 0.4 * np.cos(3 * x + rng.uniform(-0.4, 0.4)) * np.cos(2 * y)
    grey += 0.02 * rng.standard_normal(grey.shape)
    Image.fromarray((255 * grey.clip(0, 1)).astype(np.uint8)).save(path)


def run_on(folder: Path, out: Path, **changes: Any) -> IngestSummary:
    source = {"kind": "image_folder", "folder": str(folder), "labels": "labels.csv"}
    return run(configured(source, **changes), out)


def splits(out: Path) -> dict[str, str]:
    manifest = read_manifest(out / "manifest.csv")
    return dict(zip(manifest["path"], manifest["split"], strict=True))


def test_splits_follow_the_source_and_keep_subjects_apart(
    ingested: tuple[Path, IngestSummary], data_root: Path
) -> None:
    out, summary = ingested
    manifest = read_manifest(out / "manifest.csv")
    assert tuple(manifest.columns) == COLUMNS
    labels = pd.read_csv(next(data_root.glob("phantom-*")) / "labels.csv")
    assert list(summary.splits) == ["train", "validation", "test"]
    for split, part in manifest.groupby("split"):
        counts = part["label_name"].value_counts().sort_index().to_dict()
        expected = SplitCount(len(part), part["subject_id"].nunique(), counts)
        assert summary.splits[str(split)] == expected
    subjects = [split.subjects for split in summary.splits.values()]
    assert subjects[0] + subjects[1] == 20
    assert subjects[2] == 10
    assert sum(subjects) == summary.subjects == manifest["subject_id"].nunique() == 30
    assert summary.splits["test"].images == (labels["split"] == "test").sum()
    assert len(manifest) == len(labels) == summary.images
    assert summary.quarantined == summary.duplicates == 0
    # In the order of the source's files, none of which is named.
    assert manifest["label_name"].tolist() == labels["label"].tolist()
    assert manifest["label"].tolist() == (labels["label"] == "OPACITY").astype(int).tolist()
    assert (manifest["path"] == "").all()
    assert not set(manifest["subject_id"]) & set(labels["subject"])
    assert manifest["certain_subject_id"].tolist() == manifest["subject_id"].tolist()


def test_the_cache_is_complete(ingested: tuple[Path, IngestSummary]) -> None:
    out, summary = ingested
    images, train = summary.images, summary.splits["train"].images
    outside_test = images - summary.splits["test"].images
    expected = {
        "images": ("uint8", (images, 32, 32)),
        "originals": ("uint8", (images, 64, 64)),
        "swapped_training": ("uint8", (1, train, 32, 32)),
        "swapped_validation": ("uint8", (outside_test, 32, 32)),
        "frame": ("float32", (images, 196)),
        "frame_swapped": ("float32", (outside_test, 196)),
        "template": ("float32", (56, 56)),
    }
    for name, (kind, shape) in expected.items():
        array = np.load(out / f"{name}.npy")
        assert (array.dtype, array.shape) == (kind, shape)
        assert array.reshape(len(array), -1).std(1).min() > 0
    table = pd.read_csv(out / "alignment.csv")
    manifest = read_manifest(out / "manifest.csv")
    assert table["image_id"].tolist() == manifest["image_id"].tolist()
    assert table["failed"].sum() == summary.not_aligned
    positions = table[["log_scale_x", "log_scale_y", "shift_x", "shift_y"]].to_numpy()
    np.testing.assert_allclose(np.load(out / "frame.npy")[:, -4:], 255 * positions, rtol=1e-5)


def test_two_runs_write_the_same_bytes(
    ingested: tuple[Path, IngestSummary], data_root: Path, tmp_path: Path
) -> None:
    first, summary = ingested
    assert run(PHANTOM, tmp_path / "again", data_root) == summary
    for file in first.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_another_seed_swaps_otherwise(
    ingested: tuple[Path, IngestSummary], data_root: Path, tmp_path: Path
) -> None:
    # The phantom set of another seed is another set; only the swaps are to differ here.
    write_phantom(tmp_path / "phantom-v3-20-10-64-5", train_subjects=20, test_subjects=10, size=64)
    other = PHANTOM.model_copy(update={"seed": 5})
    run(other, tmp_path / "other", tmp_path)
    for name, equal in (("originals", True), ("swapped_validation", False)):
        one, two = (np.load(out / f"{name}.npy") for out in (ingested[0], tmp_path / "other"))
        assert np.array_equal(one, two) == equal


def test_test_images_have_no_part_in_the_template(folder: Path, tmp_path: Path) -> None:
    run_on(folder, tmp_path / "before")
    for path in folder.glob("2?-*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path)).T).save(path)
    run_on(folder, tmp_path / "after")
    before, after = (tmp_path / name for name in ("before", "after"))
    for name in ("template.npy", "swapped_training.npy", "swapped_validation.npy"):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    changed = (np.load(before / "images.npy") != np.load(after / "images.npy")).any((1, 2))
    assert changed.tolist() == [split == "test" for split in splits(after).values()]


def test_broken_files_are_set_aside_and_the_run_goes_on(folder: Path, tmp_path: Path) -> None:
    run_on(folder, tmp_path / "whole")
    broken = {
        "00-0.png": (b"no picture", "not a readable image: it begins like no format that is read"),
        "07-1.png": (b"", "the file is empty"),
        "25-0.png": ((folder / "25-0.png").read_bytes()[:200], "not a readable image"),
    }
    for name, (content, _) in broken.items():
        (folder / name).write_bytes(content)
    summary = run_on(folder, tmp_path / "out", max_quarantined=0.05)
    table = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert table["path"].tolist() == list(broken)
    for reason, (_, expected) in zip(table["reason"], broken.values(), strict=True):
        assert reason.startswith(expected)
    assert (summary.quarantined, summary.images) == (3, 57)
    readable = [path not in broken for path in splits(tmp_path / "whole")]
    originals = np.load(tmp_path / "whole" / "originals.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "originals.npy"), originals[readable])


def test_what_the_source_wants_set_aside_may_be_any_share(
    ingested: tuple[Path, IngestSummary], data_root: Path, tmp_path: Path
) -> None:
    files = sorted(next(data_root.glob("phantom-*")).glob("**/*.dcm"))
    shutil.copytree(files[0].parent, tmp_path / "train" / "any")
    for path in files[::3]:
        header = pydicom.dcmread(path)
        header.Modality = header.PatientID = "CT"
        header.save_as(tmp_path / "train" / "any" / path.name)
    (tmp_path / "train" / "any" / "broken.dcm").write_text("no DICOM")
    source = {"kind": "dicom_folder", "folder": str(tmp_path), "modality": ("DX",)}
    config = configured(source, alignment={"enabled": False}, max_quarantined=0.02)
    summary = run(config, tmp_path / "out", tmp_path)
    assert summary.images == len(files) - len(files[::3])
    assert summary.quarantined == len(files[::3]) + 1
    assert summary.splits["test"].subjects > 0
    table = pd.read_csv(tmp_path / "out" / "quarantine.csv", keep_default_na=False)
    reasons = table["reason"].value_counts()
    assert reasons["the modality is not DX, as the configuration demands"] == len(files[::3])
    assert len(reasons) == 2
    assert set(table["path"]) == {""}


@pytest.mark.parametrize(
    ("broken", "share", "message"),
    [(3, 0.04, r"3 of 60 .*max_quarantined=0\.04: 3 x not a"), (60, 1.0, "all 60 files .*: 60 x")],
)
def test_too_many_broken_files_stop_the_run_with_the_table(
    folder: Path, tmp_path: Path, broken: int, share: float, message: str
) -> None:
    for path in sorted(folder.glob("*.png"))[:broken]:
        path.write_text("no picture")
    with pytest.raises(UserError, match=message) as error:
        run_on(folder, tmp_path / "out", max_quarantined=share)
    table = tmp_path / "out" / "quarantine.csv"
    assert str(table) in str(error.value)
    assert len(pd.read_csv(table)) == broken


def test_the_disk_is_asked_for_space_before_it_is_mapped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int, start: int, length: int) -> None:
        assert (start, length) == (0, 60 * 64 * 64 + 128)
        raise OSError(errno.ENOSPC, "No space left on device")

    # Without this a full disk ends in a bus error, which no handler turns into one line.
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        run_on(folder, tmp_path / "out")


def test_adding_images_moves_few_others(folder: Path, tmp_path: Path) -> None:
    run_on(folder, tmp_path / "before")
    table = pd.read_csv(folder / "labels.csv")
    more = []
    for subject in range(40, 50):
        draw(folder / f"{subject}-0.png", subject)
        more.append((f"{subject}-0.png", f"subject {subject}", "train", "ill"))
    both = pd.concat([pd.DataFrame(more, columns=table.columns), table])
    both.to_csv(folder / "labels.csv", index=False)
    run_on(folder, tmp_path / "after")
    before, after = splits(tmp_path / "before"), splits(tmp_path / "after")
    moved = {name[:2] for name in before if after[name] != before[name]}
    assert len(moved) <= 4
    assert not moved & {name[:2] for name, split in before.items() if split == "test"}
    assert len(after) == len(before) + 10
    assert {after[name] for name, *_ in more} == {"train", "validation"}


def test_duplicates_are_counted_within_and_across(folder: Path, tmp_path: Path) -> None:
    for copy, original in (("01-1", "01-0"), ("05-0", "01-0"), ("29-0", "03-0")):
        (folder / f"{copy}.png").write_bytes((folder / f"{original}.png").read_bytes())
    summary = run_on(folder, tmp_path / "out")
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert summary.duplicates == audit["duplicate_files"] == 5
    assert (audit["duplicate_groups"], audit["duplicates_across_train_and_test"]) == (2, 1)
    assert read_manifest(tmp_path / "out" / "manifest.csv")["image_id"].is_unique


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Fifteen pictures of each of two classes, in folders of their names, of unknown subjects."""
    for number in range(30):
        folder = tmp_path / "classes" / ("ill", "well")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(70, 60, seed=number)).save(folder / f"{number:02d}.png")
    return tmp_path / "classes"


def run_in_folders(folder: Path, out: Path, **changes: Any) -> IngestSummary:
    source = {"kind": "image_folder", "folder": str(folder)} | changes
    off = {"enabled": False}
    return run(configured(source, alignment=off, swap=off, equalise=None), out)


def test_identical_and_similar_images_of_unknown_subjects_are_on_one_side(
    classes: Path, tmp_path: Path
) -> None:
    for number in range(0, 20, 2):
        original = classes / "ill" / f"{number:02d}.png"
        (classes / "ill" / f"copy of {number:02d}.png").write_bytes(original.read_bytes())
        brighter = Image.open(original).point(lambda value: 30 + 3 * value // 4)
        brighter.save(classes / "ill" / f"edited {number:02d}.png")
    with pytest.warns(Notice, match="20 images counted as the patients of others that are ident"):
        summary = run_in_folders(classes, tmp_path / "out")
    assert (summary.images, summary.subjects) == (50, 30)
    manifest = read_manifest(tmp_path / "out" / "manifest.csv")
    of_one = manifest["path"].str.extract(r"(\d\d)\.png")[0]
    assert manifest.groupby(of_one)["split"].nunique().eq(1).all()
    assert manifest.groupby(of_one)["subject_id"].nunique().eq(1).all()
    # 30 subjects, a fifth of them for the test, of the others 0.3 for validation.
    assert {k: v.subjects for k, v in summary.splits.items()} == {
        "train": 17, "validation": 7, "test": 6,
    }  # fmt: skip


def test_identical_files_with_contradicting_labels_are_set_aside(
    classes: Path, tmp_path: Path
) -> None:
    (classes / "well" / "same.png").write_bytes((classes / "ill" / "04.png").read_bytes())
    (classes / "ill" / "copy.png").write_bytes((classes / "ill" / "06.png").read_bytes())
    summary = run_in_folders(classes, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert table["path"].tolist() == ["ill/04.png", "well/same.png"]
    assert set(table["reason"]) == {"identical to a file with another label"}
    assert summary.set_aside == {"identical to a file with another label": 2}
    paths = read_manifest(tmp_path / "out" / "manifest.csv")["path"].tolist()
    assert set(paths) >= {"ill/06.png", "ill/copy.png"}
    originals = np.load(tmp_path / "out" / "originals.npy")
    assert len(originals) == len(paths) == 30
    np.testing.assert_array_equal(
        originals[paths.index("ill/06.png")], originals[paths.index("ill/copy.png")]
    )


def test_the_split_is_the_same_under_another_key_and_elsewhere(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_folders(classes, tmp_path / "one")
    monkeypatch.setenv("MEDVQ_SUBJECT_KEY", "another machine's secret")
    shutil.copytree(classes, tmp_path / "moved")
    run_in_folders(tmp_path / "moved", tmp_path / "two")
    assert splits(tmp_path / "one") == splits(tmp_path / "two")


def test_splits_are_drawn_after_broken_files_are_set_aside(classes: Path, tmp_path: Path) -> None:
    for path in sorted((classes / "ill").iterdir())[:11]:
        path.write_text("no picture")
    source = {"kind": "image_folder", "folder": str(classes)}
    off = {"enabled": False}
    config = configured(source, alignment=off, swap=off, equalise=None, max_quarantined=0.9)
    with pytest.warns(Notice, match=r"cannot be read, and so are left out: 11 of 15 of 'ill'$"):
        summary = run(config.model_copy(update={"probe": ProbeConfig(folds=2)}), tmp_path / "out")
    counts = {name: split.labels for name, split in summary.splits.items()}
    assert [counts[split]["ill"] for split in ("train", "validation", "test")] == [2, 1, 1]


def test_a_fraction_of_labels_that_is_too_small_is_told_before_training(
    classes: Path, tmp_path: Path
) -> None:
    with pytest.warns(Notice, match=r"the probe will refuse .* the smallest that works here is"):
        run_in_folders(classes, tmp_path / "out")


def test_every_file_is_accounted_for(classes: Path, tmp_path: Path) -> None:
    (classes / "ill" / "empty.png").write_bytes(b"")
    (classes / "ill" / ".DS_Store").write_bytes(b"any")
    (classes / "notes.txt").write_text("any")
    source = {"kind": "image_folder", "folder": str(classes)}
    off = {"enabled": False}
    config = configured(source, alignment=off, swap=off, equalise=None, max_quarantined=0.9)
    summary = run(config, tmp_path / "out")
    assert (summary.listed, summary.images, summary.quarantined) == (33, 30, 1)
    assert summary.skipped == {"hidden file or folder": 1, "no image (.txt)": 1}
    assert summary.set_aside == {"the file is empty": 1}
    write_audit_page(tmp_path / "out", summary)
    page = " ".join((tmp_path / "out" / "audit.html").read_text().split())
    assert "33 files or images were seen: 30 were read, 1 set aside" in page
    assert "no image (.txt)" in page


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (lambda name: name < "well", "all 15 labelled images are of one class, 'ill'"),
        (lambda name: name < "well/02", "class 'well' has 1 subject"),
        (lambda name: name < "well/04", "class 'well' is missing from validation"),
        (lambda name: name < "well/06", r"class 'well' has 1 training subjects .* probe\.folds=4"),
    ],
)
def test_labels_that_no_probe_can_use_are_refused_before_training(
    classes: Path, tmp_path: Path, kept: Callable[[str], bool], message: str
) -> None:
    for path in classes.glob("*/*.png"):
        if not kept(path.relative_to(classes).as_posix()):
            path.unlink()
    with pytest.raises(UserError, match=message):
        run_in_folders(classes, tmp_path / "out")


def test_a_subject_in_train_and_test_is_refused(folder: Path, tmp_path: Path) -> None:
    table = pd.read_csv(folder / "labels.csv")
    table.loc[0, "subject"] = "subject 25"
    table.to_csv(folder / "labels.csv", index=False)
    with pytest.raises(
        UserError, match=r"line \d+: its subject is in the split \w+, and in"
    ) as error:
        run_on(folder, tmp_path / "out")
    assert "subject 25" not in str(error.value)
