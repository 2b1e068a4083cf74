"""Where a data set's files are, and which images they hold."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medvq.config import Config, FolderSource, ImageFolderSource, Labels, PhantomSource
from medvq.datasets import array_files, hippocampus, kermany
from medvq.datasets import folders as image_folder
from medvq.datasets.archives import unpack
from medvq.datasets.download import DownloadError, download
from medvq.datasets.manifest import SourceImage
from medvq.datasets.published import DataManifest, PublishedFile, data_manifest
from medvq.errors import UserError
from medvq.images.cache import ReadCache
from medvq.images.reading import sha256_of

# Nobody is to be protected, and the same subjects are set aside for validation everywhere.
_PHANTOM_KEY = b"synthetic"
_PHANTOM_FOLDER = ImageFolderSource(kind="image_folder", labels=Labels(file="labels.csv"))
_PUBLISHED = {
    "kermany": kermany.list_images,
    "pneumoniamnist": array_files.list_pneumoniamnist,
    "mnist": array_files.list_mnist,
    "stl10": array_files.list_stl10,
    "hippocampus": hippocampus.list_images,
}


def locate(config: Config, data_root: Path, data_mirror: str | None) -> Path:
    """The folder with the data set.

    A user's own; else ``DATA_ROOT/<name>`` or ``DATA_MIRROR/<name>``, whichever holds all that was
    published; else either with a part of it, saying so; else ``DATA_ROOT/<name>``, filled from an
    archive that the user has put into one of them, from the mirror's address, or from the official
    source. The phantom set is written on first use. Nothing is ever written to a mirror.

    Raises
    ------
    UserError
        There is none, saying which file goes where, how large it is and its checksum.
    """
    if isinstance(config.source, FolderSource) and config.source.folder:
        folder = Path(config.source.folder).expanduser()
        if not folder.is_dir():
            raise UserError(f"source.folder={folder} is not a folder")
        return folder
    name = _folder_name(config)
    kept = data_root / name
    if isinstance(config.source, PhantomSource):
        _write_phantom(config.source, config.seed, kept)
        return kept
    mirror, address = _mirror(data_mirror)
    folders = [kept, mirror / name] if mirror else [kept]
    manifest = data_manifest(config.source.kind)
    if manifest is None:
        for folder in folders:
            if folder.is_dir() and any(folder.iterdir()):
                return folder
        raise UserError(f"no data: {_missing(folders)}; put the images into {kept}")
    if (found := _at_hand(manifest, folders)) is None:
        with _alone(kept):
            if (found := _at_hand(manifest, folders)) is None:
                _obtain(manifest, folders, f"{address}/{name}" if address else None)
                found = kept
    return found


def describe(kind: str) -> dict[str, Any]:
    """The published facts of a data set from ``data_manifests/``; empty for a user's own."""
    manifest = data_manifest(kind)
    return manifest.model_dump() if manifest else {}


def list_images(config: Config, folder: Path) -> list[SourceImage]:
    """The images of the data set in ``folder``.

    Raises
    ------
    UserError
        The folder has another layout or holds no image.
    """
    if isinstance(config.source, FolderSource):
        images = list(image_folder.list_images(folder, config.source))
    elif isinstance(config.source, PhantomSource):
        images = list(image_folder.list_images(folder, _PHANTOM_FOLDER, _PHANTOM_KEY))
    else:
        images = list(_PUBLISHED[config.source.kind](folder))
    if not images:
        raise UserError(f"{folder} holds no image")
    return images


def fingerprint(images: list[SourceImage], folder: Path, cache: ReadCache) -> str:
    """A hash over names and contents: the same wherever, and whenever, the same data is copied."""
    paths = sorted({path for image in images for path in image.parts or (image.path,)})
    sums = dict(zip(paths, sha256_of(paths, cache), strict=True))
    digest = hashlib.sha256()
    for image in images:
        for path in image.parts or (image.path,):
            entry = (
                path.relative_to(folder).as_posix(),
                sums[path],
                image.subject,
                image.certain_subject,
                image.split,
                image.label,
                image.index,
                image.target,
                image.folds,
                image.window,
                image.set_aside,
            )
            digest.update(repr(entry).encode())
    return digest.hexdigest()


def _folder_name(config: Config) -> str:
    """Variants of a configuration (kermany-fast) share the folder of their data set."""
    if isinstance(config.source, PhantomSource):
        size = config.source
        return f"phantom-{size.train_subjects}-{size.test_subjects}-{size.size}-{config.seed}"
    return config.name if isinstance(config.source, FolderSource) else config.source.kind


def _write_phantom(source: PhantomSource, seed: int, folder: Path) -> None:
    if (folder / "labels.csv").is_file():
        return
    from medvq.datasets.phantom import write_phantom

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_phantom(
        folder,
        train_subjects=source.train_subjects,
        test_subjects=source.test_subjects,
        size=source.size,
        seed=seed,
    )


def _mirror(data_mirror: str | None) -> tuple[Path | None, str | None]:
    """DATA_MIRROR as a folder or as an address."""
    if not data_mirror:
        return None, None
    scheme, separator, _ = data_mirror.partition("://")
    if not separator:
        return Path(data_mirror).expanduser(), None
    if scheme not in {"http", "https"}:
        raise UserError(
            f"DATA_MIRROR begins with {scheme}://; it must be a folder or an address that begins "
            "with https:// or http://"
        )
    return None, data_mirror.rstrip("/")


def _at_hand(manifest: DataManifest, folders: list[Path]) -> Path | None:
    """The first folder with all that was published, else the first with enough to go on with."""
    usable = None
    for folder in folders:
        needed, published = manifest.lacking(folder)
        if not published:
            return folder
        if not needed and usable is None:
            usable = folder, published
    if usable is None:
        return None
    folder, lacking = usable
    _say_once(
        f"{folder} lacks files of the published set: {', '.join(lacking)}; going on with what is "
        "there (move it away to have all of it downloaded)"
    )
    return folder


@cache
def _say_once(line: str) -> None:
    """Every stage looks for the data; the user is told once."""
    print(line, file=sys.stderr)


@contextmanager
def _alone(kept: Path) -> Iterator[None]:
    """Let one run fetch the data set while others wait for it."""
    lock = FileLock(kept.parent / f".{kept.name}.lock")
    try:
        kept.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another run is fetching {kept.name}; waiting for it", file=sys.stderr)
            lock.acquire()
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {kept} ({error.strerror}); mend that or set DATA_ROOT"
        ) from error
    finally:
        lock.release()


def _obtain(manifest: DataManifest, folders: list[Path], address: str | None) -> None:
    """Fill the first of ``folders`` with what the manifest says."""
    kept = folders[0]
    for file in manifest.files:
        archive = _adopt(file, folders)
        fetched = archive is None
        if archive is None:
            archive = kept / file.file
            mirrored = (f"{address}/{file.file}",) if address else ()
            try:
                download(
                    (*mirrored, *file.addresses),
                    archive,
                    size=file.size,
                    complaint=file.complaint,
                )
            except DownloadError as error:
                raise UserError(_where_to_put(manifest, folders, str(error))) from error
        if file.unpack:
            unpack(archive, kept)
            if fetched:
                archive.unlink()
        elif archive.parent != kept:
            shutil.copyfile(archive, kept / f".{file.file}.part")
            (kept / f".{file.file}.part").replace(kept / file.file)
    needed, _ = manifest.lacking(kept)
    if needed:
        raise UserError(f"{kept} still lacks {', '.join(needed)}: its archive is of another layout")


def _adopt(file: PublishedFile, folders: list[Path]) -> Path | None:
    """What the user has put there already, if it is whole."""
    for folder in folders:
        if (path := folder / file.file).is_file():
            if wrong := file.complaint(path):
                raise UserError(f"{path} is not the published file ({wrong}); move it away")
            return path
        for name in file.other_editions:
            if (path := folder / name).is_file():
                return path
    return None


def _where_to_put(manifest: DataManifest, folders: list[Path], failures: str) -> str:
    files = ", ".join(file.told() for file in manifest.files)
    unpacked = " (packed or unpacked)" if any(file.unpack for file in manifest.files) else ""
    return (
        f"no data: {_missing(folders)}, and downloading failed ({failures}); put {files}{unpacked} "
        f"of {manifest.address} into {folders[0]}, or set DATA_ROOT or DATA_MIRROR to a folder "
        f"that holds {folders[0].name}/"
    )


def _missing(folders: list[Path]) -> str:
    verb = "is" if len(folders) == 1 else "are"
    return f"{' and '.join(str(folder) for folder in folders)} {verb} missing or empty"
