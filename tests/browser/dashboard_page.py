"""What tests of the dashboard do with its page."""

from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from tests.integration.router_stack import ADMIN_KEY, RouterStack

SERIOUS = ("serious", "critical")


def log_in(page: Page, stack: RouterStack) -> None:
    """Open the dashboard as a person with the admin key does."""
    page.goto(f"{stack.url}/dashboard")
    page.get_by_label("Admin key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#connection")).to_have_text("Live")


def problems(page: Page) -> list[Any]:
    """What axe calls serious or critical: rule and first element."""
    found = Axe().run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS]
