"""The pictures of the report in docs/: `python scripts/report_screenshots.py runs/quickstart`.

Of several runs, which differ by their seed, it takes report_seeds.png alone. It takes them in
headless Chromium (scripts/setup_browser.sh) and reduces them to 256 colours.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "e2e")]

from browser import MISSING, Page, browser  # noqa: E402

from r1lab.report.html import write_report  # noqa: E402

TOP = "scrollTo(0, 0)"
SHOWN = "document.querySelector('#group')"
TRANSCRIPTS = "document.querySelector('#transcripts').scrollIntoView()"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or those of seeds")
    parser.add_argument("--into", default=str(ROOT / "docs"), help="where the pictures go (docs/)")
    options = parser.parse_args()
    if MISSING:
        print(f"report_screenshots: not here: {MISSING}", file=sys.stderr)
        return 2
    into = Path(options.into)
    with tempfile.TemporaryDirectory() as place:
        report = write_report(options.runs, Path(place) / "report.html")
        with browser(Path(place) / "profile") as page:
            if len(options.runs) > 1:
                page.open(report, width=1360, height=1130)
                take(page, TOP, into / "report_seeds.png")
                return 0
            page.open(report, width=1360, height=1130)
            take(page, TOP, into / "report.png")
            page.open(report, width=1360, height=900)
            page.set("step", "20")
            page.set("order", "mixed")
            page.until(f"return {SHOWN}.querySelector('.right') && {SHOWN}.querySelector('.wrong')")
            page.js(TRANSCRIPTS)
            page.press("t")
            take(page, TRANSCRIPTS, into / "report_transcripts.png")
            page.open(report, width=1360, height=900, dark=True)
            take(
                page, "document.querySelector('#curves').scrollIntoView()", into / "report_dark.png"
            )
            page.open(report, width=390, height=844)
            left = shot(page, TOP)
            page.set("order", "improved")
            page.until(
                "return R1.page.transcripts.gains && document.querySelector('.sample.right')"
            )
            right = shot(page, "document.querySelector('#group').scrollIntoView()")
            save(beside(left, right), into / "report_phone.png")
    return 0


def shot(page: Page, scroll: str) -> Image.Image:
    page.js(scroll)
    # Two frames: the list and the charts follow a scroll with the next one.
    page.driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    )
    return Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one size beside each other on a grey ground."""
    gap = 24
    whole = Image.new("RGB", (left.width + right.width + 3 * gap, left.height + 2 * gap), "#d9dce0")
    whole.paste(left, (gap, gap))
    whole.paste(right, (left.width + 2 * gap, gap))
    return whole


def take(page: Page, scroll: str, path: Path) -> None:
    save(shot(page, scroll), path)


def save(picture: Image.Image, path: Path) -> None:
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    sys.exit(main())
