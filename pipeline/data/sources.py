"""Where a data set's files are, and which images they hold."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import (
    Config,
    FolderSource,
    ImageFolderSource,
    KermanySource,
    Labels,
    PhantomSource,
)
from pipeline.data import image_folder, kermany
from pipeline.data.manifest import SourceImage
from pipeline.errors import UserError

# Nobody is to be protected, and the same subjects are set aside for validation everywhere.
_PHANTOM_KEY = b"synthetic"
_PHANTOM_FOLDER = ImageFolderSource(kind="image_folder", labels=Labels(file="labels.csv"))
_MANIFESTS = Path(__file__).parent.parent.parent / "data_manifests"


def locate(config: Config, data_root: Path, data_mirror: str | None) -> Path:
    """The folder with the data set: a user's own, DATA_ROOT/<name>, or DATA_MIRROR/<name>.

    The phantom set is written on first use. Nothing is ever written to a mirror.

    Raises
    ------
    UserError
        There is none, saying what goes where.
    """
    if isinstance(config.source, FolderSource) and config.source.folder:
        folder = Path(config.source.folder).expanduser()
        if not folder.is_dir():
            raise UserError(f"source.folder={folder} is not a folder")
        return folder
    kept = data_root / _folder_name(config)
    if isinstance(config.source, PhantomSource):
        _write_phantom(config.source, config.seed, kept)
        return kept
    tried = [kept]
    if data_mirror and "://" not in data_mirror:
        tried.append(Path(data_mirror).expanduser() / _folder_name(config))
    for folder in tried:
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    known = describe(config.source.kind)
    what = f"{known['archive']} of {known['address']}, unpacked," if known else "the images"
    raise UserError(
        f"no data: {' and '.join(str(folder) for folder in tried)} "
        f"{'is' if len(tried) == 1 else 'are'} missing or empty; put {what} into {kept}, "
        "or set DATA_ROOT or DATA_MIRROR to a folder that holds it"
    )


def describe(kind: str) -> dict[str, Any]:
    """The published facts of a data set from ``data_manifests/``; empty for a user's own."""
    file = _MANIFESTS / f"{kind}.yaml"
    return dict(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def list_images(config: Config, folder: Path) -> list[SourceImage]:
    """The images of the data set in ``folder``.

    Raises
    ------
    UserError
        The folder has another layout or holds no image.
    """
    if isinstance(config.source, KermanySource):
        images = list(kermany.list_images(folder))
    elif isinstance(config.source, PhantomSource):
        images = list(image_folder.list_images(folder, _PHANTOM_FOLDER, _PHANTOM_KEY))
    else:
        images = list(image_folder.list_images(folder, config.source))
    if not images:
        raise UserError(f"{folder} holds no image")
    return images


def fingerprint(images: list[SourceImage], folder: Path) -> str:
    """A hash over names, sizes and times: changes when a file is added, removed or written."""
    digest = hashlib.sha256()
    for image in images:
        for path in image.parts or (image.path,):
            status = path.stat()
            entry = (
                path.relative_to(folder).as_posix(),
                status.st_size,
                status.st_mtime_ns,
                image.subject,
                image.split,
                image.label,
                image.target,
            )
            digest.update(repr(entry).encode())
    return digest.hexdigest()


def _folder_name(config: Config) -> str:
    """Variants of a configuration (kermany-fast) share the folder of their data set."""
    if isinstance(config.source, KermanySource):
        return "kermany"
    if isinstance(config.source, PhantomSource):
        size = config.source
        return f"phantom-{size.train_subjects}-{size.test_subjects}-{size.size}-{config.seed}"
    return config.name


def _write_phantom(source: PhantomSource, seed: int, folder: Path) -> None:
    if (folder / "labels.csv").is_file():
        return
    from pipeline.data.phantom import write_phantom

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_phantom(
        folder,
        train_subjects=source.train_subjects,
        test_subjects=source.test_subjects,
        size=source.size,
        seed=seed,
    )
