"""Files over HTTP: resumed where they broke off, and used only when they are what they should be.

``requests`` brings redirects, TLS and the proxies of the environment. No well-kept library resumes
a broken download and verifies it, so the code that does is here.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tqdm import tqdm

from medvq import __version__

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 18
# Bytes that a file of unknown size may have: more than any data set that is read here.
_LARGEST = 1 << 40
# HTTP statuses that may pass: timeouts, too many requests, trouble of the server.
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class DownloadError(Exception):
    """An error that ends a download; the message says what each address did."""


class _Broken(Exception):
    """A transfer that broke off and is worth another try."""


@dataclass(frozen=True)
class Patience:
    """How long to wait, and how often to try again.

    Attributes
    ----------
    connect, silence : seconds for a connection, and without a byte.
    attempts : in a row that bring no more bytes; any byte more starts the count anew.
    pause : seconds before the second attempt; doubles with each.
    redirects : followed at most.
    """

    connect: float = 10.0
    silence: float = 60.0
    attempts: int = 4
    pause: float = 1.0
    redirects: int = 5


def download(
    addresses: Sequence[str],
    target: Path,
    *,
    size: int | None,
    complaint: Callable[[Path], str | None],
    patience: Patience = Patience(),
) -> None:
    """Bring a file to ``target``, from the first of ``addresses`` that has it whole.

    What an interrupted run has left (``.<name>.part`` beside the target) is continued. A file that
    turns out wrong although it was continued is fetched once more from its beginning.

    Parameters
    ----------
    size : in bytes, where it is known; a server that offers another size is left at once.
    complaint : says of the downloaded file what is wrong with it, or None.

    Raises
    ------
    DownloadError
        No address gave it.
    """
    import requests

    part = target.with_name(f".{target.name}.part")
    failures: list[str] = []
    with requests.Session() as session:
        session.headers.update({"User-Agent": f"medvq/{__version__}"})
        session.max_redirects = patience.redirects
        for address in addresses:
            host = urlsplit(address).hostname or "?"
            print(f"downloading {target.name} from {host}", file=sys.stderr)
            try:
                _fetch_whole(session, address, part, size, complaint, patience)
            except DownloadError as error:
                failures.append(f"{host}: {error}")
                continue
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            part.replace(target)
            return
    raise DownloadError("; ".join(failures))


def _fetch_whole(
    session: requests.Session,
    address: str,
    part: Path,
    size: int | None,
    complaint: Callable[[Path], str | None],
    patience: Patience,
) -> None:
    """Fill ``part`` with a file that draws no complaint; begin anew where it was continued."""
    for is_continued in (part.exists(), False):
        _fetch(session, address, part, size, patience)
        if (wrong := complaint(part)) is None:
            return
        part.unlink()
        if not is_continued:
            raise DownloadError(f"a wrong file ({wrong})")


def _fetch(
    session: requests.Session, address: str, part: Path, size: int | None, patience: Patience
) -> None:
    """Fill ``part`` from where it ends, again and again while the transfer breaks off."""
    idle = 0
    furthest = _length(part)
    while _length(part) != size:
        try:
            _continue(session, address, part, size, patience)
            return
        except _Broken as error:
            # The furthest ever, since a part that the server refuses is begun anew.
            idle = 0 if _length(part) > furthest else idle + 1
            furthest = max(furthest, _length(part))
            if idle >= patience.attempts:
                raise DownloadError(f"{error}, {idle} times in a row") from error
        time.sleep(patience.pause * 2 ** max(idle - 1, 0))


def _continue(
    session: requests.Session, address: str, part: Path, size: int | None, patience: Patience
) -> None:
    import requests
    import urllib3

    have = _length(part)
    # Compressed on its way, a file has another length, and a range of it means nothing.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeout = (patience.connect, patience.silence)
    try:
        with session.get(address, headers=headers, stream=True, timeout=timeout) as response:
            start = _start(response, address, part, have)
            offered = response.headers.get("Content-Length", "")
            total = start + int(offered) if offered.isdecimal() else None
            if size is not None and total is not None and total != size:
                raise DownloadError(f"a wrong file ({total:,} bytes instead of {size:,})")
            limit = size or total or _LARGEST
            if limit != _LARGEST and limit - start > (free := shutil.disk_usage(part.parent).free):
                raise DownloadError(f"{limit - start:,} bytes to fetch and only {free:,} free")
            _write(response, part, start, limit)
    except requests.TooManyRedirects as error:
        raise DownloadError(f"more than {patience.redirects} redirects") from error
    except (requests.Timeout, urllib3.exceptions.ReadTimeoutError) as error:
        raise _Broken("no answer in time") from error
    except (requests.ConnectionError, urllib3.exceptions.HTTPError) as error:
        broke = _length(part) > have
        raise _Broken("the connection broke off" if broke else "cannot be reached") from error
    except requests.RequestException as error:
        raise DownloadError(f"refused ({type(error).__name__})") from error
    if size is not None and _length(part) < size:
        raise _Broken("the file ended early")


def _start(response: requests.Response, address: str, part: Path, have: int) -> int:
    """Return where in the file the answer begins."""
    if urlsplit(address).scheme == "https" and urlsplit(response.url).scheme != "https":
        raise DownloadError("it redirects from https to an address that is not")
    status = response.status_code
    if status == 416:
        part.unlink(missing_ok=True)
        raise _Broken("it has no such part of the file")
    if status in _TRY_AGAIN:
        raise _Broken(f"HTTP status {status}")
    if status == 206:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            raise _Broken("it sent another part of the file than was asked for")
        return have
    if status != 200:
        raise DownloadError(f"HTTP status {status}")
    return 0


def _write(response: requests.Response, part: Path, start: int, limit: int) -> None:
    name = part.name.removeprefix(".").removesuffix(".part")
    total = None if limit == _LARGEST else limit
    progress = tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True)
    with part.open("r+b" if start else "wb") as stream, progress:
        stream.seek(start)
        for chunk in response.raw.stream(_CHUNK, decode_content=False):
            if stream.tell() + len(chunk) > limit:
                raise DownloadError(f"a wrong file (more than {limit:,} bytes)")
            stream.write(chunk)
            progress.update(len(chunk))


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
