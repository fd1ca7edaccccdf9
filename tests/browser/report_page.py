"""What tests of the report do with its page."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

SERIOUS = ("serious", "critical")
WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}


@contextmanager
def opened(chromium: Browser, report: Path, width: str = "desktop", **options: Any) -> Iterator[Page]:
    """The page of a report, as a reader opens the file."""
    size = WIDTHS[width]
    context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    page = context.new_page()
    page.goto(report.as_uri())
    yield page
    context.close()


def unfold(page: Page) -> None:
    """Open every folded part, so that nothing escapes a check by being out of sight."""
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")


def problems(page: Page) -> list[tuple[str, str]]:
    """What axe calls serious or critical: rule and first element."""
    found = Axe().run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS]


def too_wide(page: Page) -> list[str]:
    """Elements that stick out of the page at the right, outside a part that scrolls."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("main table, main svg, main pre, main .box")]
          .filter((e) => e.getClientRects().length
            && getComputedStyle(e.closest(".scroll") || e).overflowX !== "auto"
            && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
          .map((e) => e.outerHTML.slice(0, 160))"""
    )
    return found
