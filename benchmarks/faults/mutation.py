"""Mutations of a file's bytes; each follows from the state of a generator."""

from __future__ import annotations

import numpy as np

# What parsers make most of: ends of ranges, signs, and what delimits and nests.
_TOKENS = (
    *(b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0"),
    *(b"9" * 30, b"1E155", b"-1", b"nan", b"inf", b"{" * 9, b"[" * 9, b"*", b"&", b": ", b'"'),
)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a file in one to four places: bits, runs, tokens, lengths, copies."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        # Half of the places are near the beginning, where headers are.
        most = len(changed) if rng.random() < 0.5 else min(len(changed), 600)
        at, length = int(rng.integers(0, most + 1)), int(rng.integers(1, 64))
        kind = rng.integers(0, 7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            changed[at : at + length] = rng.bytes(length)
        elif kind == 2:
            token = _TOKENS[int(rng.integers(0, len(_TOKENS)))]
            changed[at : at + len(token)] = token
        elif kind == 3:
            changed[at:at] = _TOKENS[int(rng.integers(0, len(_TOKENS)))]
        elif kind == 4:
            del changed[at : at + length]
        elif kind == 5:
            changed[at:at] = changed[at : at + length] * int(rng.integers(1, 9))
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)
