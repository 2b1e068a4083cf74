"""Pages opened in Chromium, and what can be measured of them there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, sync_playwright

# The contrast of every text that is seen, against the nearest background behind it.
_CONTRASTS = """() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const channel = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const e of document.body.querySelectorAll('*')) {
    const own = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join('');
    if (!own) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    found[own.slice(0, 40)] = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  }
  return found;
}"""


@dataclass
class Opened:
    """A page in the browser, and what it did there that it should not have done."""

    page: Page
    requests: list[str]
    complaints: list[str]

    def width(self) -> int:
        """How wide the page is, in pixels, whether or not that can be seen."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))

    def contrasts(self) -> dict[str, float]:
        """Return the contrast of each text with what is behind it, from 1 to 21."""
        return dict(self.page.evaluate(_CONTRASTS))


@contextmanager
def opened(
    file: Path, width: int = 1280, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Opened]:
    """Open a file in Chromium; a test is skipped where there is none, unless all are demanded."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        (pytest.fail if os.environ.get("MEDVQ_REQUIRE_DATA") else pytest.skip)(
            "Chromium is not installed: apt-get install chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        requests: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(file.resolve().as_uri())
        outside = [
            url for url in requests if not url.startswith(("data:", file.resolve().as_uri()))
        ]
        yield Opened(page, outside, complaints)
        browser.close()
