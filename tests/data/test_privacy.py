"""Subjects under keyed pseudonyms, and the secret that lies with its owner alone."""

import stat
from pathlib import Path

import pytest

from pipeline.data.privacy import key_file, pseudonym, subject_key
from pipeline.errors import UserError


@pytest.fixture
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("MEDVQ_SUBJECT_KEY")
    return tmp_path / "config" / "medvq" / "subject.key"


def test_the_secret_is_made_once_for_its_owner_alone(own_key: Path) -> None:
    assert key_file() == own_key
    secret = subject_key()
    assert stat.S_IMODE(own_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(own_key.parent.stat().st_mode) == 0o700
    assert len(bytes.fromhex(secret.decode())) == 32
    assert subject_key() == secret
    own_key.unlink()
    assert subject_key() != secret


def test_a_secret_that_a_site_shares_is_used(own_key: Path) -> None:
    own_key.parent.mkdir(parents=True)
    own_key.write_text("shared by the site\n")
    assert subject_key() == b"shared by the site"


def test_the_variable_goes_first_and_writes_nothing(
    own_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDVQ_SUBJECT_KEY", "given")
    assert subject_key() == b"given"
    assert not own_key.exists()


def test_a_place_that_cannot_be_written_names_the_mend(
    own_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_key.parent.parent.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"subject\.key.*set MEDVQ_SUBJECT_KEY"):
        subject_key()


def test_pseudonyms_follow_subject_and_secret() -> None:
    # Fixed for all time: another value would tear apart what sites have named already.
    assert pseudonym("Ann", b"secret") == "s-12adae75217fa7f4"
    names = {pseudonym(s, k) for s in ("Ann", "Bo", "") for k in (b"secret", b"other")}
    assert len(names) == 6
    assert pseudonym("Ann", b"x" * 1000) != pseudonym("Ann", b"x" * 1001)
