"""Pictures of every tab for the docs: light, dark, and on a phone.

    python scripts/screenshots.py --runs some/runs         docs/images/page/<tab>-<light|dark|phone>.webp

The page is served over the runs that are given and the adapters that ship, so what the pictures show is what is there.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from visit import TABS, Visit, chromium, served  # noqa: E402

VIEWS = {"light": (1280, 900, "light"), "dark": (1280, 900, "dark"), "phone": (390, 844, "light")}
LONGEST = 1800  # pixels of a picture's height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="the runs that the page shows")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "page")
    parser.add_argument("--tab", action="append", choices=TABS, help="only this; may be repeated")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    zoo = str(ROOT / "adapters" / "zoo")
    with served(given.runs, tidy=False, VDMREASON_ZOO=zoo) as (url, _), chromium() as browser:
        for name, (width, height, theme) in VIEWS.items():
            visit = Visit(browser, url, width, height)
            visit.page.goto(f"{url}?__theme={theme}")
            visit.shown(120)  # hundreds of runs are read at the first view
            for tab in given.tab or TABS:
                visit.tab(tab)
                if tab == "Draw":
                    visit.page.locator("#draw-begin").click()  # a puzzle and not an empty sheet
                if tab == "Backbones":
                    asked = visit.page.locator("#look-draw")
                    visit.page.wait_for_timeout(2500)
                    if asked.is_enabled():  # the first view: the others find it drawn
                        asked.click()
                    visit.page.locator("#films canvas").first.wait_for(timeout=120_000)
                visit.page.wait_for_timeout(2500)  # for films that play once and for plots that draw themselves
                with Image.open(io.BytesIO(visit.page.screenshot(full_page=True))) as picture:
                    cut = picture.convert("RGB").crop((0, 0, picture.width, min(picture.height, LONGEST)))
                    file = given.out / f"{tab.lower()}-{name}.webp"
                    cut.save(file, quality=82, method=6)
                    print(f"{file.name}: {cut.width} x {cut.height}, {file.stat().st_size // 1024} KiB", flush=True)
            visit.context.close()


if __name__ == "__main__":
    main()
