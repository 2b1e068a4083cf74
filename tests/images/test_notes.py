"""Notes on how a file was read: collected where asked for, cached, and said once by ingest."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from factories.images import dicom, noise, save_dicom
from medvq.errors import Notice
from medvq.images import reading
from medvq.images.cache import FILE, ReadCache
from medvq.images.formats.notes import applied, notice, recorded
from medvq.images.reading import ImageFiles, Reader, ReadResult, read_all, warn_of_notices

SECRET = b"tests only"


def test_notes_are_collected_once_each_and_only_inside_the_block() -> None:
    notice("outside")
    with recorded() as outer:
        applied("window 40/400")
        notice("RescaleSlope is 0: ignored")
        with recorded() as inner:
            notice("inside")
        notice("RescaleSlope is 0: ignored")
        applied("inverted")
    assert outer.applied == ("window 40/400", "inverted")
    assert outer.notices == ("RescaleSlope is 0: ignored",)
    assert inner.notices == ("inside",)


def test_ingest_says_each_notice_once_with_its_number_of_files() -> None:
    results = [ReadResult(None, "", notices=notices) for notices in (("a", "b"), ("a",), ())]
    with pytest.warns(Notice) as caught:
        warn_of_notices(results)
    assert [str(one.message) for one in caught] == ["2 files: a", "1 file: b"]


def test_the_cache_keeps_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = save_dicom(tmp_path / "odd.dcm", dicom(noise(9, 9), RescaleSlope=0, RescaleIntercept=0))
    good = save_dicom(tmp_path / "good.dcm", dicom(noise(9, 9)))
    listed = [ImageFiles((path,)) for path in (odd, good)]

    def read() -> list[ReadResult]:
        with ReadCache(tmp_path, SECRET) as cache:
            return list(read_all(listed, Reader((8, 8)), cache))

    fresh = read()
    assert [one.notices for one in fresh] == [("RescaleSlope is 0: ignored",), ()]
    with ReadCache(tmp_path, SECRET) as cache:
        reading.file_checksums([odd, good], cache)
    monkeypatch.setattr(reading, "map_in_processes", lambda *_, **__: iter(()))
    cached = read()
    assert [one.notices for one in cached] == [one.notices for one in fresh]
    np.testing.assert_array_equal(cached[0].image, fresh[0].image)
    with sqlite3.connect(tmp_path / FILE) as file:
        assert file.execute("SELECT count(*) FROM notices").fetchone() == (1,)
