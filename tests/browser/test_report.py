"""The report in Debian's chromium, at phone and desktop widths, in both themes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.report.page import write_report
from playwright.sync_api import Browser, Dialog, Page, expect
from tests.browser.report_page import opened, problems, too_wide, unfold
from tests.unit.report_runs import KINDS, RECORDED, copy_run, hostile_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(copy_run(tmp_path_factory.mktemp("recorded")))


@pytest.fixture(scope="module", params=[RECORDED, KINDS], ids=lambda run: str(run.name))
def each_report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of each recorded run."""
    return write_report(copy_run(tmp_path_factory.mktemp("each"), request.param))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(hostile_run(tmp_path_factory.mktemp("hostile")))


@pytest.fixture
def page(chromium: Browser, report: Path) -> Iterator[Page]:
    with opened(chromium, report) as page:
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("width", "shown", "hidden"), [("desktop", "wide", "narrow"), ("phone", "narrow", "wide")]
)
def test_page_fits_its_screen_and_axe_finds_nothing_serious(
    chromium: Browser, each_report: Path, artefacts: Path, width: str, shown: str, hidden: str, scheme: Any
) -> None:
    with opened(chromium, each_report, width, color_scheme=scheme) as page:
        name = f"report-{each_report.parent.name}-{width}-{scheme}.png"
        page.screenshot(path=artefacts / name, full_page=True)
        unfold(page)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert too_wide(page) == []
        assert page.locator(f"figure .{shown}:visible").count() >= 4
        assert page.locator(f"figure .{hidden}:visible").count() == 0
        assert problems(page) == []


@pytest.mark.parametrize("width", ["phone", "desktop"])
def test_text_of_figures_is_large_enough_to_read(chromium: Browser, report: Path, width: str) -> None:
    with opened(chromium, report, width) as page:
        heights = page.evaluate(
            """() => [...document.querySelectorAll("svg.plot text")]
              .filter((t) => t.getClientRects().length).map((t) => t.getBoundingClientRect().height)"""
        )
    assert heights
    assert min(heights) >= 8


def test_tables_sort_by_their_values_and_say_so(page: Page) -> None:
    peaks = page.locator("#memory table").first
    heading = peaks.locator("thead th", has_text="Peak used")
    place = heading.evaluate("(cell) => cell.cellIndex")
    cells = peaks.locator(f"tbody td:nth-child({place + 1})")
    for direction, turned in (("ascending", False), ("descending", True)):
        heading.get_by_role("button").click()
        values = [float(v) for v in cells.evaluate_all("(all) => all.map((cell) => cell.dataset.v)")]
        assert len(values) == 2
        assert values == sorted(values, reverse=turned)
        expect(heading).to_have_attribute("aria-sort", direction)


def test_tables_are_whole_without_script(chromium: Browser, report: Path) -> None:
    with opened(chromium, report, java_script_enabled=False) as page:
        assert page.locator("main table tbody tr").count() > 20
        assert page.locator("th button").count() == 0


def test_every_control_and_scrolling_part_is_reached_by_the_keyboard(chromium: Browser, report: Path) -> None:
    """Tab goes through the page as a reader without a mouse does; the skip link comes first and works."""
    with opened(chromium, report, "phone") as page:
        unfold(page)
        wanted = page.evaluate(
            """() => [...document.querySelectorAll("a[href], button, summary, [tabindex='0']")]
              .filter((e) => e.getClientRects().length).map((e, n) => (e.dataset.nr = n, n))"""
        )
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        reached = {int(page.evaluate("document.activeElement.dataset.nr"))}
        for _ in wanted[1:]:
            page.keyboard.press("Tab")
            reached.add(int(page.evaluate("document.activeElement.dataset.nr ?? -1")))
        assert set(wanted) - reached == set()
        stuck = page.evaluate(
            """() => [...document.querySelectorAll("main *")].filter((e) => e.getClientRects().length
                && ["auto", "scroll"].includes(getComputedStyle(e).overflowX)
                && e.scrollWidth > e.clientWidth + 1
                && e.tabIndex < 0 && !e.querySelector("a, button, [tabindex='0']"))
              .map((e) => e.outerHTML.slice(0, 160))"""
        )
        assert stuck == []


def test_skip_link_leads_past_the_navigation(page: Page) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_link_to_folded_evidence_opens_it(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = false))")
    folded = page.locator("#load details").nth(1)
    folded.evaluate("(part) => (part.querySelector('table').id = 'wanted')")
    page.evaluate("location.hash = 'wanted'")
    expect(folded).to_have_attribute("open", "")


def test_script_of_the_page_runs_under_its_own_policy(page: Page) -> None:
    assert page.locator('th button[type="button"]').count() > 20
    assert page.locator("main > section").evaluate_all("(all) => all.map((one) => one.id)") == [
        *("verdict", "cluster", "load", "memory", "inference", "failures", "method")
    ]


@pytest.mark.parametrize("policy", [True, False], ids=["with its policy", "without its policy"])
def test_hostile_text_runs_nothing_and_asks_for_nothing(
    chromium: Browser, hostile: Path, tmp_path: Path, artefacts: Path, policy: bool
) -> None:
    """Escaping alone has to hold: where the policy had to step in, the console would say so."""
    text = hostile.read_text()
    target = tmp_path / "hostile.html"
    target.write_text(text if policy else re.sub(r'<meta http-equiv="Content-Security[^>]*>', "", text))
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    heard: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        heard.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.on("console", lambda message: heard.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("request", lambda request: heard.append(f"request: {request.url}"))
    page.on("popup", lambda other: heard.append(f"popup: {other.url}"))
    page.goto(target.as_uri())
    unfold(page)
    for button in page.locator("th button").all()[:40]:
        button.dispatch_event("click")
    page.screenshot(path=artefacts / "report-hostile.png", full_page=True)
    assert heard == [f"request: {target.as_uri()}"]
    assert page.evaluate("window.owned") is None
    assert page.locator("img, iframe, object, embed, form, [autofocus], svg a").count() == 0
    assert page.locator("script").count() == 1
    assert (
        page.evaluate(
            """() => [...document.querySelectorAll("*")]
          .flatMap((e) => [...e.attributes]).filter((a) => a.name.startsWith("on")).length"""
        )
        == 0
    )
    assert (
        page.locator("a[href]").evaluate_all(
            "(all) => all.filter((a) => !/^(#|[.][/])/.test(a.getAttribute('href'))).length"
        )
        == 0
    )
    assert "window.owned=1" in page.locator("main").inner_text()
    assert "\u202e" not in page.locator("body").inner_text()
    context.close()


def test_dark_theme_is_dark_and_print_is_light(chromium: Browser, report: Path) -> None:
    paper = "getComputedStyle(document.querySelector('section')).backgroundColor"
    with opened(chromium, report, color_scheme="dark") as page:
        assert max(colour(page.evaluate(paper))) < 60
        page.emulate_media(media="print", color_scheme="dark")
        assert min(colour(page.evaluate(paper))) > 240


def colour(text: str) -> list[int]:
    """Red, green and blue of ``rgb(255, 255, 255)``."""
    return [int(part) for part in re.findall(r"\d+", text)[:3]]


def test_printed_page_cuts_nothing_off(chromium: Browser, each_report: Path, artefacts: Path) -> None:
    """On A4 between its margins every table and figure fits, and what was folded is printed too."""
    with opened(chromium, each_report) as page:
        page.pdf(path=artefacts / "report.pdf", format="A4")
        page.set_viewport_size({"width": 680, "height": 1000})
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.screenshot(path=artefacts / "report-print.png", full_page=True)
        assert page.locator("details:not([open])").count() == 0
        assert page.locator("nav:visible").count() == 0
        assert too_wide(page) == []
    assert (artefacts / "report.pdf").read_bytes().startswith(b"%PDF")
