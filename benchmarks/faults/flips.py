"""Flipped bits in finished artifacts: each must be found by whoever reads the artifact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from medvq.errors import UserError
from medvq.storage.artifacts import RECORD, find, verify


@contextmanager
def flipped(file: Path, bit: int) -> Iterator[None]:
    """Flip a bit of a file, and flip it back."""
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    file.write_bytes(damaged)
    try:
        yield
    finally:
        file.write_bytes(content)


def random_bits(artifacts: Path, number: int, seed: int) -> Iterator[tuple[Path, Path, int]]:
    """Yield so many times a finished artifact, a file of it and the number of a bit.

    All files are equally likely, whatever their sizes.
    """
    records = [file for file in artifacts.rglob(RECORD) if not file.parent.is_symlink()]
    files = [
        (record.parent, file)
        for record in sorted(records)
        for file in sorted(record.parent.rglob("*"))
        if file.is_file() and file.stat().st_size
    ]
    generator = np.random.default_rng(seed)
    for place in generator.integers(len(files), size=number):
        folder, file = files[place]
        yield folder, file, int(generator.integers(8 * file.stat().st_size))


def undetected_flips(artifacts: Path, number: int, seed: int = 0) -> list[str]:
    """Return, of so many flipped bits in finished artifacts, those that are not found.

    A bit is found where opening the artifact ends in one line that names the file and the command
    that makes it anew.
    """
    undetected = []
    for folder, file, bit in random_bits(artifacts, number, seed):
        with flipped(file, bit):
            message = _refusal(folder)
        if not (str(file) in message and f"medvq {folder.parent.name} --force" in message):
            undetected.append(f"{file.relative_to(artifacts)}, bit {bit}: {message}")
    return undetected


def _refusal(folder: Path) -> str:
    try:
        artifact = find(folder)
        if artifact is not None:
            verify(artifact)
    except UserError as error:
        return str(error)
    return ""
