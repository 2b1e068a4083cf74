"""Subjects under keyed pseudonyms, and the secret that lies with its owner alone."""

import os
import stat
from pathlib import Path

import pytest
from medvq.datasets.pseudonyms import key_file, pseudonym, subject_key
from medvq.errors import UserError


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
    own_key.write_text("shared by the sites\n")
    own_key.chmod(0o600)
    assert subject_key() == b"shared by the sites"


def test_a_secret_that_others_can_read_is_refused_with_the_mend(own_key: Path) -> None:
    subject_key()
    own_key.chmod(0o640)
    with pytest.raises(UserError, match=f"chmod 600 {own_key}"):
        subject_key()


@pytest.mark.parametrize("left", ["", "short\n"])
def test_a_secret_that_was_cut_short_is_not_used(own_key: Path, left: str) -> None:
    subject_key()
    own_key.write_text(left)
    with pytest.raises(UserError, match="shorter than 16 bytes"):
        subject_key()


def test_two_first_runs_agree_and_leave_nothing_beside(
    own_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower = os.link

    def link(aside: str, file: Path) -> None:
        own_key.write_text("of the quicker run\n")
        own_key.chmod(0o600)
        slower(aside, file)

    monkeypatch.setattr("os.link", link)
    assert subject_key() == b"of the quicker run"
    assert list(own_key.parent.iterdir()) == [own_key]


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
