"""Files opened in Chromium, and what can be measured of them there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from factories.browser import browser_page
from playwright.sync_api import Page

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
    """Open a file in Chromium, as wide as a phone (390) or a screen."""
    with browser_page() as page:
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme)
        requests: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        own = file.resolve().as_uri()
        page.goto(own)
        yield Opened(
            page, [url for url in requests if not url.startswith(("data:", own))], complaints
        )
