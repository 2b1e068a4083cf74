"""Keyed pseudonyms of subjects.

A bare hash of a patient's number is undone by trying all numbers; one keyed with a secret is not.
The secret lies outside artifacts and data, readable by its owner alone. Sites that must give the
same subject the same name share the file, or its content in ``MEDVQ_SUBJECT_KEY``.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from medvq.errors import UserError

# Bytes: a secret of 128 bits cannot be guessed.
_SHORTEST = 16
KEY_VARIABLE = "MEDVQ_SUBJECT_KEY"


def key_file() -> Path:
    """Return ``$XDG_CONFIG_HOME/medvq/subject.key``, by default in ~/.config."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "medvq" / "subject.key"


def subject_key() -> bytes:
    """Return the secret, which is made on first use with mode 0600."""
    if secret_text := os.environ.get(KEY_VARIABLE):
        return secret_text.encode()
    file = key_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists():
            _make(file)
        mode, secret = stat.S_IMODE(file.stat().st_mode), file.read_bytes().strip()
    except OSError as error:
        raise UserError(
            f"cannot write or read the secret that subjects are named with "
            f"({file}: {error.strerror}); set {KEY_VARIABLE} instead"
        ) from error
    if mode & 0o077:
        raise UserError(
            f"others may read the secret that subjects are named with: chmod 600 {file}"
        )
    if len(secret) < _SHORTEST:
        raise UserError(
            f"the secret in {file} is shorter than {_SHORTEST} bytes; restore the one that "
            "subjects were named with, or remove the file to have a new one made"
        )
    return secret


def _make(file: Path) -> None:
    """Write a new secret aside and link it: two first runs agree, and neither reads half of it."""
    # mkstemp gives it mode 0600 from the start.
    descriptor, aside = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(32) + "\n")
    try:
        os.link(aside, file)
    except FileExistsError:
        pass  # another run was quicker, and its secret is used
    finally:
        Path(aside).unlink()


def pseudonym(subject: str, key: bytes) -> str:
    """Name ``subject`` as only holders of ``key`` can: ``s-`` and 16 hex digits.

    >>> pseudonym("Ann", b"secret") == pseudonym("Ann", b"secret") != pseudonym("Ann", b"other")
    True
    """
    # BLAKE2 (RFC 7693) takes keys of up to 64 bytes.
    digest = hashlib.blake2b(
        subject.encode("utf-8", "surrogateescape"),
        key=hashlib.sha256(key).digest(),
        digest_size=8,
    )
    return f"s-{digest.hexdigest()}"
