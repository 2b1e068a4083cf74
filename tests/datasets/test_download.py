"""Downloads from a server on this machine that does all that servers do wrong."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from factories.web import Request, Server, drip, serving
from medvq.datasets.download import DownloadError, Patience, download

BODY = np.random.default_rng(0).bytes(900_000)
QUICK = Patience(connect=2, silence=0.3, attempts=3, pause=0.001, redirects=3)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.answer = lambda request: request.give(BODY)
        yield running


def complaint(path: Path) -> str | None:
    right = hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(BODY).digest()
    return None if right else "another checksum"


def fetch(folder: Path, *servers: Server, size: int | None = len(BODY)) -> None:
    """Download ``file.bin``; where that does not fail, it must arrive as it is."""
    addresses = [f"{server.address}/set/file.bin" for server in servers]
    target = folder / "file.bin"
    download(addresses, target, size=size, complaint=complaint, patience=QUICK)
    assert target.read_bytes() == BODY


def ranges(server: Server) -> list[str | None]:
    return [asked for _, asked in server.seen]


@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_file_arrives_whole(server: Server, tmp_path: Path, size: int | None) -> None:
    fetch(tmp_path, server, size=size)
    assert server.seen == [("/set/file.bin", None)]
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("size", [len(BODY), None])
def test_what_breaks_off_goes_on_where_it_broke(
    server: Server, tmp_path: Path, size: int | None
) -> None:
    server.answer = lambda request: request.give(BODY, only=300_000)
    fetch(tmp_path, server, size=size)
    assert ranges(server) == [None, "bytes=300000-", "bytes=600000-"]


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        (BODY[:1000], ["bytes=1000-"]),
        (BODY, []),
        (BODY[:5][::-1], ["bytes=5-", None]),
        (BODY[::-1], [None]),
        (BODY + b"more", [f"bytes={len(BODY) + 4}-", None]),
    ],
    ids=["part", "whole", "wrong part", "wrong", "longer"],
)
def test_what_an_earlier_run_left_is_continued_or_fetched_anew(
    server: Server, tmp_path: Path, left: bytes, asked: list[str | None]
) -> None:
    (tmp_path / ".file.bin.part").write_bytes(left)
    fetch(tmp_path, server)
    assert ranges(server) == asked


@pytest.mark.parametrize("shift", [None, 7], ids=["no ranges", "another range"])
def test_a_server_that_answers_with_another_range_is_not_believed(
    server: Server, tmp_path: Path, shift: int | None
) -> None:
    def shifted(request: Request) -> None:
        if request.start:
            start = 0 if shift is None else request.start + shift
            request.headers.replace_header("Range", f"bytes={start}-")
        request.give(BODY)

    (tmp_path / ".file.bin.part").write_bytes(BODY[:1000])
    server.answer = shifted
    fetch(tmp_path, server)


def test_a_file_that_the_server_compresses_on_its_way_is_stored_as_it_is(
    server: Server, tmp_path: Path
) -> None:
    def encoded(request: Request) -> None:
        assert request.headers["Accept-Encoding"] == "identity"
        # What some servers say of every .gz; it is no reason to unpack it.
        request.start_response({"Content-Encoding": "gzip", "Content-Length": len(BODY)})
        request.wfile.write(BODY)

    server.answer = encoded
    fetch(tmp_path, server)


def test_slow_is_no_failure_as_long_as_something_comes(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: drip(request, BODY, pieces=5, pause=0.1)
    fetch(tmp_path, server)
    assert len(server.seen) == 1


def test_silence_ends(server: Server, tmp_path: Path) -> None:
    server.answer = server.hang
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1: no answer in time, 3 times in a row"):
        fetch(tmp_path, server)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again(server: Server, tmp_path: Path, status: int) -> None:
    server.answer = lambda request: (
        request.send_error(status) if len(server.seen) < 3 else request.give(BODY)
    )
    fetch(tmp_path, server)


@pytest.mark.parametrize(("status", "asked"), [(500, 3), (404, 1), (403, 1)])
def test_a_server_that_refuses_is_given_up(
    server: Server, tmp_path: Path, status: int, asked: int
) -> None:
    server.answer = lambda request: request.send_error(status)
    with pytest.raises(DownloadError, match=f"HTTP status {status}"):
        fetch(tmp_path, server)
    assert len(server.seen) == asked


def test_a_redirect_is_followed_and_a_loop_of_them_is_not(server: Server, tmp_path: Path) -> None:
    server.answer = lambda request: (
        request.give(BODY) if request.path == "/moved" else request.redirect("/moved")
    )
    fetch(tmp_path, server)
    server.answer = lambda request: request.redirect(request.path)
    with pytest.raises(DownloadError, match="more than 3 redirects"):
        fetch(tmp_path, server)


@pytest.mark.parametrize(
    ("body", "length", "reason"),
    [
        (BODY[:-1], None, r"899,999 bytes instead of 900,000"),
        (BODY + b"x", None, r"900,001 bytes instead of 900,000"),
        (BODY[::-1], None, r"a wrong file \(another checksum\)"),
        (BODY, len(BODY) + 9, r"900,009 bytes instead of 900,000"),
    ],
)
def test_a_wrong_file_is_not_used(
    server: Server, tmp_path: Path, body: bytes, length: int | None, reason: str
) -> None:
    server.answer = lambda request: request.give(body, length=length)
    with pytest.raises(DownloadError, match=reason):
        fetch(tmp_path, server)
    assert not (tmp_path / "file.bin").exists()


def test_a_server_that_promises_more_than_it_has_is_given_up(
    server: Server, tmp_path: Path
) -> None:
    short = BODY[:1000]
    server.answer = lambda request: request.give(short, length=len(BODY) - request.start)
    with pytest.raises(DownloadError, match="3 times in a row"):
        fetch(tmp_path, server)


def test_a_file_without_a_stated_length_is_cut_off_at_its_size(
    server: Server, tmp_path: Path
) -> None:
    def endless(request: Request) -> None:
        request.start_response({})
        for _ in range(40):
            request.wfile.write(BODY)

    server.answer = endless
    with pytest.raises(DownloadError, match="more than 900,000 bytes"):
        fetch(tmp_path, server)
    assert (tmp_path / ".file.bin.part").stat().st_size <= len(BODY)


def test_the_next_address_is_tried_and_goes_on_with_what_there_is(
    server: Server, tmp_path: Path
) -> None:
    with serving() as broken, serving() as wrong:
        broken.answer = lambda request: (
            request.send_error(404) if request.start else request.give(BODY, only=400_000)
        )
        wrong.answer = lambda request: request.give(BODY[::-1])
        fetch(tmp_path, broken, server)
        assert ranges(server) == ["bytes=400000-"]
        fetch(tmp_path, wrong, server)


def test_nobody_there_is_told_of_every_address(tmp_path: Path) -> None:
    with serving() as gone:
        pass
    addresses = [f"{gone.address}/file.bin", "http://name:secret@localhost:9/file.bin"]
    with pytest.raises(DownloadError) as caught:
        download(addresses, tmp_path / "f", size=1, complaint=complaint, patience=QUICK)
    assert str(caught.value).startswith("127.0.0.1: cannot be reached")
    assert "localhost: cannot be reached" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_proxy_of_the_environment_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("no_proxy", "")
    address = "http://far.invalid/file.bin"
    download([address], tmp_path / "f", size=None, complaint=complaint, patience=QUICK)
    assert server.seen == [(address, None)]
