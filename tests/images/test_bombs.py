"""Small files that stand for gigabytes: refused by their headers, in little memory."""

from pathlib import Path

import pytest
from factories.bombs import BOMBS
from factories.misbehaving import peak_of_reading
from medvq.images.workers import map_in_processes

MOST = 400 * 2**20
"""Bytes that a process may take at its peak: what libraries need, and little more."""


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_is_refused_in_little_memory(tmp_path: Path, what: str) -> None:
    name, write, reason = BOMBS[what]
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 15 * 2**20
    (result,) = map_in_processes(peak_of_reading, [tmp_path / name], processes=1, timeout=60)
    assert isinstance(result, tuple)
    why, peak = result
    if reason:  # else it may be read: the pixels are whole
        assert why == reason
    assert peak < MOST
