"""`python -m tests.report.screenshots [RUN]`: the pictures of docs/report.md, taken by a real browser.

RUN is the demo's folder (runs/demo); where there is none, the demo is run first, which takes minutes.
"""

import subprocess
import sys
from pathlib import Path

from keylayers.report.page import write_report
from tests.report.browser import browser, chromium

IMAGES = Path(__file__).parents[2] / "docs" / "images"
BOTTOM = "document.querySelector('{}').getBoundingClientRect().bottom + scrollY"


def main(run: Path) -> int:
    """Writes docs/images/report-desktop.png and report-phone.png."""
    program = chromium()
    if program is None:
        sys.stderr.write("no Chromium on this machine: apt-get install chromium fonts-inter\n")
        return 2
    if not list(run.glob("*/run.json")):
        subprocess.run([sys.executable, "-m", "keylayers", "demo", "--out", str(run)], check=True)
    report = write_report(run).page
    IMAGES.mkdir(parents=True, exist_ok=True)
    with browser(program) as page:
        for name, width, last in (("desktop", 1280, ".maps .main"), ("phone", 390, "#comparison .legend")):
            page.open(report, width)
            page.picture(IMAGES / f"report-{name}.png", height=round(page.value(BOTTOM.format(last))) + 12)
            print(IMAGES / f"report-{name}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")))
