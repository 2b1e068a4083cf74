"""Subjects under keyed pseudonyms.

A bare hash of a patient's number is undone by trying all numbers; one keyed with a secret is not.
The secret lies outside artifacts and data, readable by its owner alone. Sites that must give the
same subject the same name share the file, or its content in ``MEDVQ_SUBJECT_KEY``.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from pipeline.errors import UserError

KEY_VARIABLE = "MEDVQ_SUBJECT_KEY"


def key_file() -> Path:
    """Where the secret lies: ``$XDG_CONFIG_HOME/medvq/subject.key``, by default in ~/.config."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "medvq" / "subject.key"


def subject_key() -> bytes:
    """The secret, made on first use with mode 0600."""
    if given := os.environ.get(KEY_VARIABLE):
        return given.encode()
    file = key_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return file.read_text(encoding="ascii").strip().encode()
    except OSError as error:
        raise UserError(
            f"cannot write the secret that subjects are named with ({file}: {error.strerror}); "
            f"set {KEY_VARIABLE} instead"
        ) from error
    secret = secrets.token_hex(32)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secret + "\n")
    return secret.encode()


def pseudonym(subject: str, key: bytes) -> str:
    """A name for ``subject`` that only holders of ``key`` can make: ``s-`` and 16 hex digits.

    >>> pseudonym("Ann", b"secret") == pseudonym("Ann", b"secret") != pseudonym("Ann", b"other")
    True
    """
    # BLAKE2 (RFC 7693) takes keys of up to 64 bytes.
    digest = hashlib.blake2b(subject.encode(), key=hashlib.sha256(key).digest(), digest_size=8)
    return f"s-{digest.hexdigest()}"
