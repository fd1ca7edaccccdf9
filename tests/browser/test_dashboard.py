"""The dashboard of a real router with real backends, in Debian's chromium, at phone and desktop widths."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from router_stack import ADMIN_KEY, RouterStack, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.integration]

HOSTILE = "<img src=x onerror=window.owned=1><script>window.owned=1</script>"
WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def stack(
    llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterStack]:
    stack = RouterStack(llama_build, smollm2, tmp_path_factory.mktemp("dashboard"))
    (stack.models / f"{HOSTILE.replace('/', '')}.gguf").symlink_to(smollm2)
    yield stack
    stack.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where screens are kept: ``DASHBOARD_SCREENS``, else with the test's other files."""
    folder = Path(os.environ.get("DASHBOARD_SCREENS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def log_in(page: Page, stack: RouterStack) -> None:
    page.goto(f"{stack.url}/dashboard")
    page.get_by_label("Admin key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#connection")).to_have_text("Live")


@pytest.fixture
def page(chromium: Browser, stack: RouterStack) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    log_in(page, stack)
    yield page
    context.close()


def load(stack: RouterStack) -> None:
    status, state = stack.admin("load", {"model": "smollm2"})
    assert status == 200, state


def problems(page: Page) -> list[Any]:
    found = Axe().run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS]


def test_nothing_is_shown_without_the_admin_key(chromium: Browser, stack: RouterStack) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{stack.url}/dashboard")
    page.get_by_label("Admin key").fill("not-the-key-of-admins")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("That is not the admin key.")
    assert problems(page) == []
    assert page.request.get(f"{stack.url}/dashboard/events").status == 401
    log_in(page, stack)
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert ADMIN_KEY not in cookie["value"]
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Admin key")).to_be_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_its_screen_and_axe_finds_nothing_serious(
    chromium: Browser, stack: RouterStack, artefacts: Path, width: str, scheme: Any
) -> None:
    load(stack)
    size = WIDTHS[width]
    context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    log_in(page, stack)
    expect(page.locator("#coordinator")).to_contain_text("ready")
    page.screenshot(path=artefacts / f"dashboard-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert problems(page) == []
    context.close()


def test_request_in_flight_is_shown_with_its_rate_and_busy_backends_are_not_down(
    page: Page, stack: RouterStack
) -> None:
    load(stack)
    body = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 1500, "ignore_eos": True}
    connection, answer = stack.send("/v1/chat/completions", {"model": "smollm2", "stream": True} | body)
    try:
        row = page.locator("#requests tbody tr")
        expect(row).to_contain_text("smollm2")
        expect(row.locator("[data-name='Tokens/s']")).to_contain_text(".")
        expect(page.locator("#backends .state")).to_have_text(["busy", "busy"])
        expect(page.locator("#decisions")).to_contain_text("smollm2")
        expect(page.locator("#log")).to_contain_text("llama")
    finally:
        answer.close()
        connection.close()


def test_lost_coordinator_is_shown_with_its_diagnosis(page: Page, stack: RouterStack) -> None:
    load(stack)
    os.kill(stack.admin("coordinator")[1]["pid"], signal.SIGKILL)
    expect(page.locator("#failures .bad").first).not_to_be_empty(timeout=30_000)


def test_hostile_text_runs_no_script(page: Page, stack: RouterStack) -> None:
    expect(page.locator("#models")).to_contain_text("<img src=x")
    load(stack)
    state = stack.admin("coordinator")[1]
    log = next(path for path in Path(state["log_dir"]).iterdir() if path.suffix == ".log")
    with log.open("a") as file:
        file.write(HOSTILE + "\n")
    expect(page.locator("#log")).to_contain_text(HOSTILE)
    assert page.evaluate("window.owned") is None
    assert page.locator("main img, main script").count() == 0


def test_page_asks_nobody_but_the_router(chromium: Browser, stack: RouterStack) -> None:
    context = chromium.new_context()
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    log_in(page, stack)
    context.close()
    assert {url for url in asked if not url.startswith((stack.url, "data:"))} == set()
    assert said == []


def test_lost_connection_is_shown_with_the_age_of_the_page_and_comes_back(
    page: Page, stack: RouterStack
) -> None:
    stack.router.terminate()
    expect(page.locator("#connection")).to_contain_text("Connection lost", timeout=20_000)
    expect(page.locator("#age")).to_have_text("what is shown is 3 s old", timeout=20_000)
    stack.router.wait(30)
    stack.start_router()
    expect(page.locator("#connection")).to_have_text("Live", timeout=20_000)


def test_router_that_falls_silent_without_closing_is_shown_as_lost(page: Page, stack: RouterStack) -> None:
    stack.router.send_signal(signal.SIGSTOP)
    try:
        expect(page.locator("#connection")).to_contain_text("Connection lost", timeout=20_000)
    finally:
        stack.router.send_signal(signal.SIGCONT)
    expect(page.locator("#connection")).to_have_text("Live", timeout=20_000)


def test_turned_off_dashboard_is_not_there(stack: RouterStack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.router.terminate()
    stack.router.wait(30)
    monkeypatch.setenv("SOLLOL_DASHBOARD", "false")
    stack.start_router()
    for path in ("/dashboard", "/dashboard/events", "/dashboard/session"):
        assert stack.call(path, key=None)[0] == 404
    stack.router.terminate()
    stack.router.wait(30)
    monkeypatch.delenv("SOLLOL_DASHBOARD")
    stack.start_router()
    wait_for(lambda: stack.call("/dashboard", key=None)[0] == 200, 10, "dashboard")
