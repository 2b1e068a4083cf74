"""Inputs of a stage: what is damaged is found before anything that was made of it is published."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path

import pytest
from factories.artifacts import published
from medvq.errors import UserError
from medvq.storage import verification
from medvq.storage.artifacts import Artifact
from medvq.storage.checksums import checksum
from medvq.storage.verification import Verification


@pytest.fixture
def ingest(tmp_path: Path) -> Artifact:
    return published(tmp_path / "set" / "ingest" / "0123456789abcdef", "0123456789" * 10)


@pytest.fixture
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_LARGE", 10)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(content)


DAMAGE = pytest.mark.parametrize(
    ("spoil", "reason"), [(flip, "was changed or damaged"), (Path.unlink, "is missing")]
)


@DAMAGE
def test_a_small_file_is_verified_before_it_is_read(
    ingest: Artifact, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(ingest.folder / "table.csv")
    with (
        pytest.raises(UserError, match=rf"table\.csv {reason}.*medvq ingest --force"),
        Verification([ingest]),
    ):
        pytest.fail("a damaged file would be read")


@pytest.mark.usefixtures("_all_are_large")
def test_a_large_file_is_verified_while_it_is_read(ingest: Artifact) -> None:
    flip(ingest.folder / "table.csv")
    reached = False
    with pytest.raises(UserError, match=r"table\.csv was changed"), Verification([ingest]):
        reached = True
    assert reached


@pytest.mark.usefixtures("_all_are_large")
def test_what_was_found_meanwhile_ends_a_long_stage_early(ingest: Artifact) -> None:
    flip(ingest.folder / "table.csv")
    with pytest.raises(UserError, match=r"table\.csv was changed"), Verification([ingest]) as check:
        wait([future for *_, future in check._sums])
        check.check()
        pytest.fail("a training would go on for hours")


@pytest.mark.usefixtures("_all_are_large")
def test_damage_explains_the_error_that_it_caused(ingest: Artifact) -> None:
    flip(ingest.folder / "table.csv")
    with (
        pytest.raises(UserError, match=r"table\.csv was changed") as raised,
        Verification([ingest]),
    ):
        raise ValueError("cannot parse the table")
    assert isinstance(raised.value.__context__, ValueError)


@pytest.mark.usefixtures("_all_are_large")
def test_an_error_or_an_interruption_without_damage_is_passed_on(ingest: Artifact) -> None:
    for kind in (ValueError, KeyboardInterrupt, UserError):
        with pytest.raises(kind), Verification([ingest]):
            raise kind


@pytest.mark.usefixtures("_all_are_large")
def test_an_interruption_ends_the_hashing(ingest: Artifact) -> None:
    with pytest.raises(KeyboardInterrupt), Verification([ingest]) as check:
        raise KeyboardInterrupt
    assert check._stop.is_set()
    content = ingest.folder / "table.csv"
    assert checksum(content, check._stop) != checksum(content)


def test_an_input_that_is_made_anew_meanwhile_is_noticed(ingest: Artifact) -> None:
    with (
        pytest.raises(UserError, match="0123456789abcdef was made anew while this run read it"),
        Verification([ingest]),
    ):
        published(ingest.folder, "other")


def test_an_input_that_stays_as_it_is_is_fine(ingest: Artifact) -> None:
    for large in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verification, "_LARGE", 10 if large else 10**6)
            with Verification([ingest]) as check:
                check.check()
            assert bool(check._sums) is large


def test_an_input_that_is_made_again_with_the_same_bytes_is_fine(ingest: Artifact) -> None:
    content = (ingest.folder / "table.csv").read_text()
    with Verification([ingest]):
        published(ingest.folder, content)
    with pytest.raises(UserError, match="made anew"), Verification([ingest]):
        published(ingest.folder, content)
        raise FileNotFoundError
