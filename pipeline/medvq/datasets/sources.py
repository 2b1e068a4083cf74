"""Where a data set's files are, and which images they hold."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from filelock import FileLock, Timeout

from medvq.config import (
    Config,
    FolderSource,
    ImageFolderSource,
    JoinedSource,
    Labels,
    PhantomSource,
    Source,
)
from medvq.datasets import folders as image_folder
from medvq.datasets.archives import UNPACKED, finish_unpacking, unpack
from medvq.datasets.data_manifest import DataManifest, PublishedFile, data_manifest
from medvq.datasets.dataset import SPLITS, Dataset, Listing, SourceImage, Split
from medvq.datasets.download import DownloadError, download
from medvq.datasets.file_names import is_file
from medvq.datasets.folds import with_fold
from medvq.datasets.joined import list_joined
from medvq.datasets.pseudonyms import subject_key
from medvq.datasets.published import published_dataset
from medvq.errors import UserError
from medvq.images.cache import ReadCache
from medvq.images.reading import file_checksums

# Nobody is to be protected, and the same subjects are set aside for validation everywhere.
_PHANTOM_KEY = b"synthetic"
# Raised whenever other pictures are drawn: a folder of the former ones is not taken for them.
_PHANTOM_VERSION = 3
_PHANTOM_FOLDER = ImageFolderSource(kind="image_folder", labels=Labels(file="labels.csv"))


def dataset(source: Source) -> Dataset:
    """Return what generic code asks of the data set of a configuration.

    Raises
    ------
    UserError
        It is neither a folder of the user's own nor a published data set that is known, or has
        not the folds that are asked for.
    """
    if isinstance(source, FolderSource):
        listing = partial(image_folder.list_images, source=source)
        return Dataset(listing, test_fraction=source.test_fraction)
    if isinstance(source, PhantomSource):
        return Dataset(partial(image_folder.list_images, source=_PHANTOM_FOLDER, key=_PHANTOM_KEY))
    if isinstance(source, JoinedSource):
        published = {kind: published_dataset(kind) for kind in source.members}
        return Dataset(partial(_list_joined, published))
    dataset = published_dataset(source.kind)
    return dataset if source.fold is None else with_fold(dataset, source)


def published_images(source: Source) -> int | None:
    """Return how many images were published; None for a folder of the user's own and phantoms."""
    if isinstance(source, FolderSource | JoinedSource):
        return None
    return data_manifest(source.kind).images


def needed_splits(source: Source) -> tuple[Split, ...]:
    """Return the splits that must have an image: joined sets hold none for a test."""
    joined = isinstance(source, JoinedSource)
    return tuple(split for split in SPLITS if not (joined and split == "test"))


def locate(config: Config, data_root: Path, data_mirror: str | None) -> Path:
    """Find the folder with the data set, or fill it.

    A user's own; else ``DATA_ROOT/<name>`` or ``DATA_MIRROR/<name>``, whichever holds all that was
    published; else either with a part of it, saying so; else ``DATA_ROOT/<name>``, filled from an
    archive that the user has put into one of them, from the mirror's address, or from the official
    source. Where ``data_manifests/`` names the folder of a set, that name is looked for, too. The
    phantom set is written on first use. Nothing is ever written to a mirror.

    Raises
    ------
    UserError
        There is none, saying which file goes where, how large it is and its checksum.
    """
    source = config.source
    dataset(source)  # a misspelt kind is refused before anything is looked for
    if isinstance(source, FolderSource) and source.folder:
        folder = Path(source.folder)
        with suppress(RuntimeError):  # a user that is not known
            folder = folder.expanduser()
        is_folder = False
        with suppress(OSError, ValueError):  # no name that a folder may have
            is_folder = folder.is_dir()
        if not is_folder:
            raise UserError(f"source.folder={folder} is not a folder{_way_to_folder(folder)}")
        return folder
    if isinstance(source, PhantomSource):
        return _phantom_folder(source, config.seed, data_root)
    if isinstance(source, JoinedSource):
        return _joined_folder(source, data_root, data_mirror)
    # Variants of a configuration (kermany-fast) share the folder of their data set.
    if not isinstance(source, FolderSource):
        return _published_folder(source.kind, data_root, data_mirror)
    mirror, _ = _mirror(data_mirror)
    folders = [root / config.name for root in (data_root, mirror) if root]
    for folder in folders:
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    raise UserError(f"no data: {_missing(folders)}; put the images into {folders[0]}")


def _way_to_folder(folder: Path) -> str:
    """Say what is to be mended in the name of a folder that is none."""
    name = str(folder)
    if is_file(folder):
        return ": it is a file; name the folder that holds the images, and unpack an archive"
    if "$" in name or "%" in name:
        return ": variables such as $HOME are not replaced; write the path that they stand for"
    if re.search(r"(^|/)\w{2,}:/", name):
        return ": it is an address; download or mount what lies there, and name that folder"
    return " (in a configuration it is relative to the file of that configuration)"


def _published_folder(kind: str, data_root: Path, data_mirror: str | None) -> Path:
    """Find the folder of a published data set, or fill ``DATA_ROOT/<kind>``."""
    mirror, address = _mirror(data_mirror)
    manifest, home = data_manifest(kind), data_root / kind
    folders = _names_of(kind, manifest, *filter(None, (data_root, mirror)))
    if (home / UNPACKED).exists():
        with _lock(home):
            finish_unpacking(home)
    if (usable := _at_hand(manifest, folders)) is None:
        with _lock(home):
            if (usable := _at_hand(manifest, folders)) is None:
                _obtain(manifest, folders, f"{address}/{kind}" if address else None)
                usable = home
    return usable


def _names_of(kind: str, manifest: DataManifest, *roots: Path) -> list[Path]:
    """Return where a published data set may lie, by its kind first."""
    names = [kind, *([manifest.folder] if manifest.folder else [])]
    return [root / name for name in names for root in roots]


def _joined_folder(source: JoinedSource, data_root: Path, data_mirror: str | None) -> Path:
    """Return the folder that holds those of all members."""
    folders = [_published_folder(kind, data_root, data_mirror) for kind in source.members]
    if apart := next((folder for folder in folders if folder.parent != folders[0].parent), None):
        raise UserError(
            f"{folders[0]} and {apart} are joined (source.members) and lie in two folders; put one "
            "beside the other"
        )
    return folders[0].parent


def _list_joined(members: dict[str, Dataset], root: Path) -> Listing:
    homes = {kind: _names_of(kind, data_manifest(kind), root) for kind in members}
    places = {kind: _at_hand(data_manifest(kind), homes[kind]) or homes[kind][0] for kind in homes}
    return list_joined({kind: (members[kind], places[kind]) for kind in members}, root)


def list_dataset(config: Config, folder: Path) -> Listing:
    """List the images of the data set in ``folder``, and count its other files.

    Raises
    ------
    UserError
        The folder has another layout or holds no image.
    """
    listed = dataset(config.source).list_images(folder)
    listing = listed if isinstance(listed, Listing) else Listing(list(listed))
    if not listing.images:
        raise UserError(f"{folder} holds no image")
    return listing


def list_images(config: Config, folder: Path) -> list[SourceImage]:
    """List the images of the data set in ``folder``; raises as :func:`list_dataset`."""
    return list_dataset(config, folder).images


def fingerprint(images: list[SourceImage], folder: Path, cache: ReadCache) -> str:
    """Hash names and contents: the same wherever, and whenever, the same data is copied."""
    paths = sorted({path for image in images for path in image.files})
    sums = dict(zip(paths, file_checksums(paths, cache), strict=True))
    digest = hashlib.sha256()
    for image in images:
        files = [(path.relative_to(folder).as_posix(), sums[path]) for path in image.files]
        facts = replace(image, path=Path(), parts=())  # which name the folder
        digest.update(repr((files, facts)).encode())
    return digest.hexdigest()


def read_cache(folder: Path | None, part: int | None = None) -> ReadCache:
    """Open the cache of what was read before; without a secret it remembers nothing.

    Parameters
    ----------
    part : see :class:`~medvq.images.cache.ReadCache`.
    """
    try:
        return ReadCache(folder, subject_key(), part=part)
    except UserError:
        return ReadCache(None)


def _phantom_folder(source: PhantomSource, seed: int, data_root: Path) -> Path:
    size = f"{source.train_subjects}-{source.test_subjects}-{source.size}"
    tied = "" if source.multiplicity == "independent" else f"-{source.multiplicity}"
    mixed = "" if source.mixed == PhantomSource(kind="phantom").mixed else f"-{source.mixed}"
    folder = data_root / f"phantom-v{_PHANTOM_VERSION}-{size}-{seed}{tied}{mixed}"
    if not (folder / "labels.csv").is_file():
        from medvq.datasets.phantom import write_phantom

        with _lock(folder):
            if not (folder / "labels.csv").is_file():
                write_phantom(
                    folder,
                    train_subjects=source.train_subjects,
                    test_subjects=source.test_subjects,
                    size=source.size,
                    seed=seed,
                    multiplicity=source.multiplicity,
                    mixed=source.mixed,
                )
    return folder


def _mirror(data_mirror: str | None) -> tuple[Path | None, str | None]:
    """Return DATA_MIRROR as a folder or as an address."""
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
    """Return the first folder with all that was published, else the first that is of use."""
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
    """Print a line the first time: every stage looks for the data."""
    print(line, file=sys.stderr)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one run fetch or make the data set while others wait for it."""
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another run is fetching {folder.name}; waiting for it", file=sys.stderr)
            lock.acquire()
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); mend that or set DATA_ROOT"
        ) from error
    finally:
        lock.release()


def _obtain(manifest: DataManifest, folders: list[Path], address: str | None) -> None:
    """Fill the first of ``folders`` with what the manifest says."""
    home = folders[0]
    if not manifest.files:
        patterns = ", ".join(part.pattern for part in manifest.parts)
        raise UserError(
            f"no data: {_missing(folders)}, and nobody offers the set as a file; put {patterns} of "
            f"{manifest.address} into {home}"
        )
    for file in manifest.files:
        archive = _adopt(file, folders)
        fetched = archive is None
        if archive is None:
            archive = home / file.file
            addresses = (*([f"{address}/{file.file}"] if address else []), *file.addresses)
            try:
                download(addresses, archive, size=file.size, complaint=file.complaint)
            except DownloadError as error:
                raise UserError(_where_to_put(manifest, folders, str(error))) from error
        if file.unpack:
            unpack(archive, home)
            if fetched:
                archive.unlink()
        elif archive.parent != home:
            part = home / f".{file.file}.part"
            shutil.copyfile(archive, part)
            part.replace(home / file.file)
    needed, _ = manifest.lacking(home)
    if needed:
        raise UserError(f"{home} still lacks {', '.join(needed)}: its archive is of another layout")


def _adopt(file: PublishedFile, folders: list[Path]) -> Path | None:
    """Return the copy that the user has put there already, if it is whole."""
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
    files = ", ".join(map(str, manifest.files))
    unpacked = " (packed or unpacked)" if any(file.unpack for file in manifest.files) else ""
    return (
        f"no data: {_missing(folders)}, and downloading failed ({failures}); put {files}{unpacked} "
        f"of {manifest.address} into {folders[0]}, or set DATA_ROOT or DATA_MIRROR to a folder "
        f"that holds {folders[0].name}/"
    )


def _missing(folders: list[Path]) -> str:
    verb = "is" if len(folders) == 1 else "are"
    return f"{' and '.join(map(str, folders))} {verb} missing or empty"
