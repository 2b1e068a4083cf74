"""The page of the audit: whole in itself, safe, and true to the audit."""

import base64
import io
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from factories.audited import audited, manifest
from factories.opened_page import opened
from medvq.report.audit_page import write_audit_page
from PIL import Image

ILL = '<b>"ill" & more</b>'
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags that open and close, pictures, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.text += " "
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in {"src", "href"}:
                self.addresses.append(str(value))
            assert not name.startswith("on")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def artifact(folder: Path, *, labelled: bool = True, colour: bool = False) -> Page:
    """Write the page of 90 images with duplicates, a blank one and a shortcut."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 9, (90, 60, 60)).astype(np.uint8)
    images[:, 20:40, 20:40] += rng.integers(0, 200, (90, 20, 20)).astype(np.uint8)
    names = np.where(np.arange(90) % 2, "well", ILL)
    images[names == ILL, :5] = 70
    images[8] = images[4]
    images[17] = 255
    table = manifest(
        90,
        image_id=[f"image{n:02d}" for n in range(90)],
        sha256=[f"h{n if n != 8 else 4}" for n in range(90)],
        **{"label_name": names} if labelled else {"label_name": "", "split": "train"},
    )
    stored = np.repeat(images[:, None], 3, 1) if colour else images
    result, clusters = audited(table, stored, published=91)
    table.to_csv(folder / "manifest.csv", index=False)
    np.save(folder / "originals.npy", stored)
    pd.DataFrame({"cluster": clusters}).to_csv(folder / "clusters.csv", index=False)
    (folder / "audit.json").write_text(json.dumps(asdict(result)))
    write_audit_page(folder)
    return Page((folder / "audit.html").read_text())


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    artifact(folder)
    return folder / "audit.html"


@pytest.fixture(scope="module")
def page(page_file: Path) -> Page:
    return Page(page_file.read_text())


def test_it_needs_no_script_and_loads_nothing(page: Page) -> None:
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe", "object", "form"}
    assert page.addresses[0] == "#main"
    pictures = page.addresses[1:]
    assert pictures
    assert all(address.startswith("data:image/jpeg;base64,") for address in pictures)
    assert "url(" not in page.text
    assert "http" not in page.text


def test_names_of_labels_are_text_and_no_markup(page: Page) -> None:
    assert "b" not in page.tags
    assert re.search(f"Test images of '{re.escape(ILL)}' (look unlike|are framed)", page.text)


def test_it_shows_what_was_found(page: Page) -> None:
    assert "90 images of 91 published" in page.text
    row = r"the frame around the object 0\.9\d\d 0\.\d{3} to [01]\.\d{3} Warning\. The label can be"
    assert re.search(row, page.text)
    assert "Not computed: the same for every image, or not known." in page.text
    assert "2 files are byte-identical to another, in 1 group; 0 of them across" in page.text
    assert "image04 image08 train; " in page.text
    assert "All pixels equal: 1 image17" in page.text
    assert "train 30 30 50%" in page.text


@pytest.mark.parametrize(
    ("train", "test", "shown"),
    [
        ({"": 6, "a": 1, "b": 3}, {"": 2}, "share of b train 6 1 3 75% test 2 0 0 –"),
        ({"a": 1, "b": 2, "c": 3}, {"b": 4}, "c train 1 2 3 test 0 4 0"),
    ],
)
def test_a_share_is_of_the_labelled_images_of_two_classes(
    tmp_path: Path, train: dict[str, int], test: dict[str, int], shown: str
) -> None:
    artifact(tmp_path)
    audit = json.loads((tmp_path / "audit.json").read_text())
    audit |= {"balance": {"train": train, "test": test}, "clusters": []}
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    write_audit_page(tmp_path)
    assert shown in Page((tmp_path / "audit.html").read_text()).text


def test_its_pictures_are_those_images(tmp_path: Path) -> None:
    artifact(tmp_path)
    pattern = r'src="data:image/jpeg;base64,([^"]+)"><figcaption>(image\d\d)'
    shown = {
        match[2]: np.asarray(Image.open(io.BytesIO(base64.b64decode(match[1]))), float)
        for match in re.finditer(pattern, (tmp_path / "audit.html").read_text())
    }
    assert {"image04", "image08", "image17"} <= shown.keys()
    for name, picture in shown.items():
        expected = np.load(tmp_path / "originals.npy")[int(name[-2:])]
        assert np.abs(picture - expected).mean() < 8  # what JPEG costs
    assert (shown["image17"] > 250).all()


def test_missing_labels_and_test_split_are_named(tmp_path: Path) -> None:
    page = artifact(tmp_path, labelled=False, colour=True)
    assert "Not computed: no labels." in page.text
    assert "Not computed: no test split." in page.text
    assert "no label" in page.text
    assert "share of" not in page.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_can_be_read_in_a_browser(
    page_file: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    with opened(page_file, width, scheme) as shown:
        assert shown.width() <= width
        assert shown.requests == []
        assert shown.complaints == []
        contrasts = shown.contrasts()
        assert len(contrasts) > 20
        assert {text: value for text, value in contrasts.items() if value < 4.5} == {}


def test_the_keyboard_reaches_the_findings_first(page_file: Path) -> None:
    with opened(page_file) as shown:
        shown.page.keyboard.press("Tab")
        focused = shown.page.locator(":focus")
        assert focused.inner_text() == "Skip to the findings"
        assert (focused.bounding_box() or {"x": -1})["x"] >= 0
