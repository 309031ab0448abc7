"""Make the README's picture of a report: ``python docs/picture.py RUN_FOLDER docs/report.png``.

The top of the page, down to the end of its first figure, as headless Chromium shows it. Needs playwright, pillow and
Chromium at /usr/bin/chromium; the report is built anew in a folder of its own, so the run is left alone.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tiebreak.report.build import build

WIDTH = 1280
COLOURS = 192
"""Colours of the picture: the page has few, and a palette keeps it small."""

SHORTER = """
nav, .lead, .beside, #h-results { display: none }
h1 { margin-top: 2.5rem !important }
#results { margin-top: 1rem }
.headlines { margin-bottom: 1.4rem }
.headlines li { padding: .6rem 0 }
"""
"""What the picture leaves out of the top of the page, so that a README has room for it."""


def picture(run: Path, out: Path) -> None:
    """Write the picture of ``run`` to ``out``."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("model", "ledger.db*", "report.html"))
        recipe = json.loads((copy / "recipe.json").read_text(encoding="utf-8"))
        page = build(copy, title=(recipe.get("report") or {}).get("title") or run.name)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": WIDTH, "height": 900})
            tab.goto(page.as_uri())
            tab.add_style_tag(content=SHORTER)
            end = tab.evaluate("document.querySelector('figure').getBoundingClientRect().bottom")
            shot = tab.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": round(end + 24)})
            browser.close()
    small = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(out, optimize=True)


if __name__ == "__main__":
    picture(Path(sys.argv[1]), Path(sys.argv[2]))
