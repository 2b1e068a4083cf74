"""Where a data set is taken from: kept, mirrored, adopted, downloaded, or told where to put it."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from factories.web import Request, Server, serving
from medvq import config_file
from medvq.config import Config
from medvq.datasets import data_manifest as manifests
from medvq.datasets import download, sources
from medvq.datasets.data_manifest import DataManifest, data_manifest
from medvq.datasets.dataset import Dataset
from medvq.datasets.download import Patience
from medvq.datasets.published import published_dataset
from medvq.errors import UserError
from medvq.images.cache import ReadCache
from pydantic import ValidationError

KERMANY = Config.model_validate({"name": "any-name", "source": {"kind": "kermany"}})
FOLDERS = [f"{split}/{label}" for split in ("train", "test") for label in ("NORMAL", "PNEUMONIA")]
NAMES = [f"chest_xray/{folder}/{number}.jpeg" for folder in FOLDERS for number in range(2)]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "published" / "set.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as opened:
        for name in NAMES:
            opened.writestr(name, name)
    return path


@pytest.fixture
def server(archive: Path) -> Iterator[Server]:
    """Serves the archive at /set.zip and nothing else."""

    def answer(request: Request) -> None:
        if request.path.endswith("/set.zip"):
            request.give(archive.read_bytes())
        else:
            request.send_error(404)

    with serving() as running:
        running.answer = answer
        yield running


@pytest.fixture(autouse=True)
def manifest(
    tmp_path: Path, archive: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The manifest of a set as small as can be, in the place of Kermany's."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    file = {
        "file": "set.zip",
        "addresses": [f"{server.address}/official/set.zip"],
        "size": archive.stat().st_size,
        "size_about": "1 kB",
        "checksum": f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}",
        "unpack": True,
        "other_editions": ["edition.zip"],
    }
    about = dict.fromkeys(("title", "address", "licence", "citation"), "made up")
    parts = [{"pattern": f"**/{folder}/*.jpeg", "count": 2} for folder in FOLDERS]
    document = about | {"images": 8, "files": [file], "parts": parts}
    (folder / "kermany.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr(manifests, "FOLDER", folder)
    quick = partial(download.download, patience=Patience(2, 2, 2, 0.001))
    monkeypatch.setattr(sources, "download", quick)
    sources._say_once.cache_clear()
    return folder / "kermany.yaml"


def put(folder: Path, names: list[str] = NAMES) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def held(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def asked(server: Server) -> list[str]:
    return [path for path, _ in server.seen]


def located(folder: Path, mirror: object = None) -> Path:
    return sources.locate(KERMANY, folder / "data", str(mirror) if mirror else None)


@pytest.mark.parametrize(("names", "where"), [(NAMES, "data"), (NAMES[:3], "mirror")])
def test_a_complete_copy_comes_first_and_a_mirror_is_read_in_place(
    tmp_path: Path, server: Server, names: list[str], where: str
) -> None:
    put(tmp_path / "data" / "kermany", names)
    mirror = put(tmp_path / "mirror" / "kermany").parent
    before = held(mirror)
    assert located(tmp_path, mirror) == tmp_path / where / "kermany"
    assert (held(mirror), server.seen) == (before, [])


def test_a_folder_under_the_other_name_of_the_set_is_found(
    tmp_path: Path, server: Server, manifest: Path
) -> None:
    manifest.write_text(manifest.read_text() + "folder: paediatric-cxr\n")
    mirror = put(tmp_path / "mirror" / "paediatric-cxr").parent
    assert located(tmp_path, mirror) == mirror / "paediatric-cxr"
    assert located(tmp_path) == tmp_path / "data" / "kermany"
    assert asked(server) == ["/official/set.zip"]


def test_a_part_is_enough_to_go_on_with_and_told_once(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = put(tmp_path / "data" / "kermany", NAMES[1:])
    for _ in range(2):
        assert located(tmp_path) == kept
    told = capsys.readouterr().err
    assert told.count("lacks files of the published set: **/train/NORMAL/*.jpeg (1 of 2)") == 1
    assert server.seen == []


def test_the_official_source_comes_last(tmp_path: Path, server: Server) -> None:
    put(tmp_path / "data" / "kermany" / ".unpacking")  # left by an interrupted run
    kept = located(tmp_path, tmp_path / "none")
    assert kept == tmp_path / "data" / "kermany"
    assert held(kept) == sorted(NAMES)
    assert asked(server) == ["/official/set.zip"]
    assert located(tmp_path) == kept
    assert len(server.seen) == 1


@pytest.mark.parametrize("near", ["right", "wrong", "missing"])
def test_the_address_of_a_mirror_comes_before_the_official_source(
    tmp_path: Path, server: Server, archive: Path, near: str
) -> None:
    official = server.answer

    def answer(request: Request) -> None:
        if request.path.startswith("/wrong/"):
            request.give(archive.read_bytes()[::-1])
        elif request.path.startswith("/missing/"):
            request.send_error(404)
        else:
            official(request)

    server.answer = answer
    assert held(located(tmp_path, f"{server.address}/{near}/")) == sorted(NAMES)
    others = [] if near == "right" else ["/official/set.zip"]
    assert asked(server) == [f"/{near}/kermany/set.zip", *others]


@pytest.mark.parametrize("where", ["data", "mirror"])
@pytest.mark.parametrize("name", ["set.zip", "edition.zip"])
def test_an_archive_that_a_user_has_put_there_is_adopted(
    tmp_path: Path, server: Server, archive: Path, where: str, name: str
) -> None:
    put_by_hand = tmp_path / where / "kermany" / name
    put_by_hand.parent.mkdir(parents=True)
    put_by_hand.write_bytes(archive.read_bytes())
    kept = located(tmp_path, tmp_path / "mirror")
    assert kept == tmp_path / "data" / "kermany"
    assert set(held(kept)) - {name} == set(NAMES)
    assert put_by_hand.read_bytes() == archive.read_bytes()
    assert held(put_by_hand.parent) == (sorted([*NAMES, name]) if where == "data" else [name])
    assert server.seen == []


def test_a_wrong_archive_of_the_users_is_refused_and_left_alone(
    tmp_path: Path, server: Server
) -> None:
    mine = tmp_path / "data" / "kermany" / "set.zip"
    mine.parent.mkdir(parents=True)
    mine.write_text("half of it")
    with pytest.raises(UserError, match=r"set\.zip is not the published file \(10 bytes instead"):
        located(tmp_path)
    assert mine.read_text() == "half of it"


def test_offline_one_line_says_what_goes_where(
    tmp_path: Path, server: Server, archive: Path
) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as caught:
        located(tmp_path, tmp_path / "mirror")
    data, mirror = (tmp_path / name / "kermany" for name in ("data", "mirror"))
    size, checksum = archive.stat().st_size, hashlib.md5(archive.read_bytes()).hexdigest()
    assert str(caught.value) == (
        f"no data: {data} and {mirror} are missing or empty, and downloading failed (127.0.0.1: "
        f"cannot be reached, 2 times in a row); put set.zip ({size:,} bytes, md5:{checksum}) "
        f"(packed or unpacked) of made up into {data}, or set DATA_ROOT or DATA_MIRROR to a "
        "folder that holds kermany/"
    )


def test_an_archive_of_another_layout_is_told(tmp_path: Path, manifest: Path) -> None:
    text = manifest.read_text().replace("**/test/NORMAL/", "**/exam/NORMAL/")
    manifest.write_text(text)
    with pytest.raises(UserError, match=r"still lacks \*\*/exam/NORMAL"):
        located(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to .*data/kermany .*DATA_ROOT"):
        located(tmp_path)


def test_a_mirror_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DATA_MIRROR begins with ftp://"):
        located(tmp_path, "ftp://somewhere")


def printed(folder: Path, cache: Path) -> str:
    with ReadCache(cache, b"secret") as known:
        return sources.fingerprint(sources.list_images(KERMANY, folder), folder, known)


def test_the_fingerprint_is_of_names_and_content_and_not_of_times(tmp_path: Path) -> None:
    folder, cache = put(tmp_path / "one"), tmp_path / "cache"
    first = printed(folder, cache)
    copied = Path(shutil.copytree(folder, tmp_path / "two"))
    for number, name in enumerate(NAMES):
        os.utime(copied / name, (number, number))
    assert printed(copied, cache) == printed(folder, cache) == first
    (copied / NAMES[0]).rename((copied / NAMES[0]).with_name("other.jpeg"))
    assert printed(copied, cache) != first
    stamp = (folder / NAMES[0]).stat()
    (folder / NAMES[0]).write_text(NAMES[0].upper())
    os.utime(folder / NAMES[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert printed(folder, cache) != first


def test_the_fingerprint_of_a_file_that_vanishes_is_no_traceback(tmp_path: Path) -> None:
    folder = put(tmp_path / "one")
    listed = sources.list_images(KERMANY, folder)
    (folder / NAMES[0]).unlink()
    with ReadCache(None) as known:
        assert len(sources.fingerprint(listed, folder, known)) == 64


SCRIPT = """
import sys
from pathlib import Path
from medvq.config import Config
from medvq.datasets import data_manifest, sources
data_manifest.FOLDER = Path(sys.argv[1])
config = Config.model_validate({"name": "x", "source": {"kind": "kermany"}})
print(sources.locate(config, Path(sys.argv[2]), None))
"""


def test_of_two_runs_one_fetches_and_the_other_waits(
    tmp_path: Path, server: Server, archive: Path, manifest: Path
) -> None:
    started = []

    def only_when_both_run(request: Request) -> None:
        started.append(request.path)
        # Only when the second has said that it waits does the first get its file.
        assert server.released.wait(30)
        request.give(archive.read_bytes())

    server.answer = only_when_both_run
    command = [sys.executable, "-c", SCRIPT, str(manifest.parent), str(tmp_path / "data")]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    # Each says one thing before it waits: for the server, or for the other.
    lines = [run.stderr.readline() for run in runs if run.stderr]
    assert any("another run is fetching kermany; waiting for it" in line for line in lines)
    assert any("downloading set.zip" in line for line in lines)
    server.released.set()
    for run in runs:
        out, err = run.communicate(timeout=30)
        assert run.returncode == 0, err
        assert out.strip() == str(tmp_path / "data" / "kermany")
    assert started == ["/official/set.zip"]
    assert held(tmp_path / "data" / "kermany") == sorted(NAMES)


KINDS = (
    "adult_cxr", "brain_tumour", "hippocampus", "kermany", "mnist", "phantom", "pneumoniamnist",
    "stl10", "tuberculosis",
)  # fmt: skip


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> dict[str, DataManifest]:
    folder = config_file.shipped("data_manifests")
    monkeypatch.setattr(manifests, "FOLDER", folder)
    assert sorted(file.stem for file in folder.glob("*.yaml")) == list(KINDS)
    return {kind: data_manifest(kind) for kind in KINDS}


def test_every_shipped_manifest_is_complete(shipped: dict[str, DataManifest]) -> None:
    assert tuple(shipped) == KINDS
    for kind, manifest in shipped.items():
        assert manifest.licence
        assert manifest.citation
        # Nobody offers the selection of adult_cxr as a file.
        assert bool(manifest.files) is (kind not in {"phantom", "adult_cxr"})
        if kind != "phantom":
            assert manifest.parts
            assert manifest.images
        for file in manifest.files:
            assert file.addresses


def test_a_published_set_is_a_module_and_a_manifest(shipped: dict[str, DataManifest]) -> None:
    for kind in shipped.keys() - {"phantom"}:
        assert isinstance(published_dataset(kind), Dataset)


def test_an_unknown_set_is_never_taken_for_a_folder_of_the_users(tmp_path: Path) -> None:
    put(tmp_path / "kermani")
    config = Config.model_validate({"name": "kermani", "source": {"kind": "kermani"}})
    with pytest.raises(UserError, match=r"kind=kermani is no data set .* kermany, mnist"):
        sources.locate(config, tmp_path, None)
    with pytest.raises(UserError, match=r"kermani has no manifest .*kermani\.yaml"):
        data_manifest("kermani")


def test_a_manifest_is_closed(manifest: Path) -> None:
    manifest.write_text(manifest.read_text() + "sice: 1\n")
    with pytest.raises(ValidationError, match="sice"):
        data_manifest("kermany")


def test_the_real_sets_are_known_as_complete(
    real_data: Path, shipped: dict[str, DataManifest]
) -> None:
    for kind in ("kermany", "pneumoniamnist", "mnist", "tuberculosis", "brain_tumour", "adult_cxr"):
        folder = real_data / (shipped[kind].folder or kind)
        assert shipped[kind].lacking(folder) == ([], [])
    for kind in ("pneumoniamnist", "mnist"):
        for file in shipped[kind].files:
            assert file.complaint(real_data / kind / file.file) is None
    # A part of the published volumes.
    needed, lacking = shipped["hippocampus"].lacking(real_data / "hippocampus")
    assert (needed, len(lacking)) == ([], 1)


def test_a_gzip_file_is_judged_by_what_it_holds(
    tmp_path: Path, shipped: dict[str, DataManifest]
) -> None:
    import gzip

    content = b"the same bytes"
    wanted = f"md5:{hashlib.md5(content).hexdigest()}"
    file = shipped["mnist"].files[0].model_copy(update={"checksum_unpacked": wanted})
    for level in (1, 9):
        (tmp_path / "a.gz").write_bytes(gzip.compress(content, level))
        assert file.complaint(tmp_path / "a.gz") is None
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"others"))
    assert "instead of" in (file.complaint(tmp_path / "a.gz") or "")
    (tmp_path / "a.gz").write_bytes(gzip.compress(content)[:-9])
    assert file.complaint(tmp_path / "a.gz") == "not a whole gzip file"


def test_a_name_that_no_folder_may_have_is_refused_in_one_line(tmp_path: Path) -> None:
    source = {"kind": "image_folder", "folder": "a" * 300, "labels": "folders"}
    config = Config.model_validate({"name": "mine", "source": source})
    with pytest.raises(UserError, match=r"source\.folder=a+ is not a folder"):
        sources.locate(config, tmp_path, None)


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("$HOME/images", "variables such as .HOME are not replaced"),
        ("%USERPROFILE%/images", "variables such as .HOME are not replaced"),
        ("s3://bucket/images", "it is an address; download or mount"),
        ("file:///images", "it is an address; download or mount"),
        ("images.zip", "it is a file; name the folder .* unpack an archive"),
        ("images", "relative to the file of that configuration"),
    ],
)
def test_a_folder_that_is_none_has_its_way_out(tmp_path: Path, name: str, way_out: str) -> None:
    (tmp_path / "images.zip").write_bytes(b"any")
    source = {"kind": "image_folder", "folder": str(tmp_path / name), "labels": "folders"}
    config = Config.model_validate({"name": "mine", "source": source})
    with pytest.raises(UserError, match=rf"is not a folder.*{way_out}"):
        sources.locate(config, tmp_path, None)
