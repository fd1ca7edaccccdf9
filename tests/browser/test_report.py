"""The report in Debian's chromium, at phone and desktop widths, in both themes."""

import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest
from harness.report import write_report
from PIL import Image
from tests.unit.report_runs import copy_run, hostile_run

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
MEASURE = """<script>
const root = document.documentElement;
const shown = (kind) => [...document.querySelectorAll(kind)].filter((e) => e.getClientRects().length).length;
Object.assign(root.dataset, {
  overflow: root.scrollWidth - root.clientWidth, wide: shown(".wide"), narrow: shown(".narrow"),
  small: [...document.querySelectorAll("svg.plot text")].filter((t) => {
    const box = t.getBoundingClientRect(); return box.height > 0 && box.height < 8; }).length,
});
document.querySelector("#memory table th:nth-child(3) button").click();
root.dataset.sorted = [...document.querySelectorAll("#memory tbody td:nth-child(3)")].map((c) => c.dataset.v);
root.dataset.sort = document.querySelector("#memory th:nth-child(3)").getAttribute("aria-sort");
</script>"""
"""Put into a copy of the page, in place of its security policy, to read how it was laid out."""
COPY = """<script>
const frame = document.querySelector("iframe");
frame.onload = () =>
  Object.assign(document.documentElement.dataset, frame.contentDocument.documentElement.dataset);
</script>"""
"""The page is measured in a frame: headless chromium has no window narrower than 500 pixels."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(copy_run(tmp_path_factory.mktemp("recorded")))


def chromium(page: Path, profile: Path, *flags: str, width: int = 1280, height: int = 2000) -> str:
    """What chromium prints of a page, given ``--dump-dom`` or ``--screenshot``."""
    assert CHROMIUM, "chromium is not installed: apt-get install chromium"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", *flags]
    shown = subprocess.run(
        [*command, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return shown.stdout


def measured(page: Path, tmp_path: Path, width: int) -> dict[str, str]:
    """How the page was laid out at this width."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    inner = escape(text.replace("</body>", MEASURE + "</body>"))
    frame = tmp_path / "measured.html"
    frame.write_text(f'<iframe width="{width}" height="900" srcdoc="{inner}"></iframe>{COPY}')
    dom = chromium(frame, tmp_path / "profile", "--dump-dom")
    return dict(re.findall(r'data-(\w+)="([^"]*)"', dom[: dom.index(">", dom.index("<html")) + 1]))


@pytest.mark.parametrize(("width", "shown", "hidden"), [(1280, "wide", "narrow"), (390, "narrow", "wide")])
def test_layout_fits_its_screen(page: Path, tmp_path: Path, width: int, shown: str, hidden: str) -> None:
    found = measured(page, tmp_path, width)
    assert found["overflow"] == "0"
    assert (found[shown], found[hidden]) == ("4", "0")
    assert found["small"] == "0"


def test_tables_sort_by_their_values(page: Path, tmp_path: Path) -> None:
    found = measured(page, tmp_path, 1280)
    values = [float(v) for v in found["sorted"].split(",")]
    assert len(values) == 2
    assert values == sorted(values)
    assert found["sort"] == "ascending"


def test_script_of_the_page_runs_under_its_own_policy(page: Path, tmp_path: Path) -> None:
    dom = chromium(page, tmp_path / "profile", "--dump-dom")
    assert dom.count('<button type="button">') > 20
    assert re.findall(r'<section id="(\w+)"', dom)[0] == "verdict"
    assert len(re.findall(r"<section id=", dom)) == 7


@pytest.mark.parametrize("policy", [True, False], ids=["with its policy", "without its policy"])
def test_hostile_text_runs_no_script(tmp_path: Path, policy: bool) -> None:
    page = write_report(hostile_run(tmp_path))
    if not policy:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
        page.write_text(text)
    dom = chromium(page, tmp_path / "profile", "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title
    assert title[1].startswith("Failed: loopback")
    assert len(re.findall(r"<script", dom)) == 1
    assert "<img" not in dom
    assert "OWNED" in dom


def test_dark_theme_is_dark_and_print_is_light(page: Path, tmp_path: Path) -> None:
    def brightness(name: str, *flags: str) -> int:
        picture = tmp_path / f"{name}.png"
        chromium(page, tmp_path / name, f"--screenshot={picture}", *flags, height=900)
        with Image.open(picture) as image:
            histogram = image.convert("L").histogram()
        return histogram.index(max(histogram))

    assert brightness("light") > 230
    assert brightness("dark", "--blink-settings=preferredColorScheme=0") < 40


def test_printing_gives_a_document(page: Path, tmp_path: Path) -> None:
    printed = tmp_path / "report.pdf"
    chromium(page, tmp_path / "profile", f"--print-to-pdf={printed}")
    assert printed.read_bytes().startswith(b"%PDF")
    assert printed.stat().st_size > 50_000
