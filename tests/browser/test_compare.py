"""The page of two runs in Debian's chromium, at phone and desktop widths."""

from pathlib import Path

import pytest
from harness.report.page import write_comparison
from playwright.sync_api import Browser
from tests.browser.report_page import opened, problems, too_wide
from tests.unit.report_runs import HOSTILE, change_manifest, copy_run, hostile_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of(tmp_path_factory.mktemp("recorded"), hostile=False)


def page_of(folder: Path, *, hostile: bool) -> Path:
    """The page of the recorded run beside a copy of it on another build."""
    make = hostile_run if hostile else copy_run
    runs = [make(folder / "before"), make(folder / "after")]
    for run, build, name in zip(runs, (6751, 6792), ("before", "after"), strict=True):

        def change(manifest: dict[str, object], build: int = build, name: str = name) -> None:
            manifest["run"] = f"{name}{HOSTILE}" if hostile else name
            for node in manifest["nodes"]:  # type: ignore[attr-defined]
                node["build"] = build

        change_manifest(run, change)
    target = folder / "compare.html"
    write_comparison(runs, target)
    return target


@pytest.mark.parametrize("width", ["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_of_two_runs_fits_its_screen_and_axe_finds_nothing_serious(
    chromium: Browser, comparison: Path, artefacts: Path, width: str, scheme: str
) -> None:
    with opened(chromium, comparison, width, color_scheme=scheme) as page:
        page.screenshot(path=artefacts / f"compare-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert too_wide(page) == []
        assert page.locator("table tbody tr").count() > 5
        pills = page.locator("table.sortable .pill").evaluate_all(
            "(all) => all.map((pill) => pill.getBoundingClientRect().right - innerWidth)"
        )
        assert max(pills) <= 0, "the verdict is seen without scrolling"
        assert problems(page) == []


def test_differences_sort_by_how_bad_they_are(chromium: Browser, comparison: Path) -> None:
    with opened(chromium, comparison) as page:
        heading = page.locator("thead th", has_text="Ratio")
        place = heading.evaluate("(cell) => cell.cellIndex")
        heading.get_by_role("button").click()
        cells = page.locator(f"table.sortable tbody td:nth-child({place + 1})")
        values = [float(value) for value in cells.evaluate_all("(all) => all.map((c) => c.dataset.v)")]
        assert values == sorted(values)
        assert "llama.cpp of node1 6792, not 6751" in page.locator("#surroundings").inner_text()


def test_hostile_runs_side_by_side_run_nothing_and_ask_for_nothing(chromium: Browser, tmp_path: Path) -> None:
    target = page_of(tmp_path, hostile=True)
    context = chromium.new_context()
    page = context.new_page()
    heard: list[str] = []
    page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("console", lambda message: heard.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("request", lambda request: heard.append(f"request: {request.url}"))
    page.goto(target.as_uri())
    assert heard == [f"request: {target.as_uri()}"]
    assert page.evaluate("window.owned") is None
    assert page.locator("img, iframe, form, [autofocus], svg").count() == 0
    assert page.locator("script").count() == 1
    assert "window.owned=1" in page.locator("main").inner_text()
    assert "\u202e" not in page.locator("body").inner_text()
    context.close()
