"""The dashboard of a real router with real backends, in Debian's chromium, at phone and desktop widths."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.browser.dashboard_page import log_in, problems
from tests.integration.router_stack import ADMIN_KEY, RouterStack, listens, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.integration]

HOSTILE = "<img src=x onerror=window.owned=1><script>window.owned=1</script>"
WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def stack(
    llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterStack]:
    stack = RouterStack(llama_build, smollm2, tmp_path_factory.mktemp("dashboard"))
    (stack.models / f"{HOSTILE.replace('/', '')}.gguf").symlink_to(smollm2)
    yield stack
    stack.close()


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
    expect(page.locator("#failures .outcome").first).to_have_text("not started again since")
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    assert stack.call("/v1/chat/completions", body)[0] == 200
    again = re.compile(r"^started again: ready \d+\.\d s after the failure$")
    expect(page.locator("#failures .outcome").first).to_have_text(again)


def test_waiting_requests_are_shown_with_their_places(page: Page, stack: RouterStack) -> None:
    """Two that wait for a model that cannot be loaded while a backend is stopped."""
    stack.reset()
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    stack.backends[0].signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(2) as threads:
            asked = [threads.submit(stack.call, "/v1/chat/completions", body) for _ in range(2)]
            rows = page.locator("#queue tbody tr")
            expect(page.locator("#queue-count")).to_have_text("2 waiting", timeout=20_000)
            expect(rows.locator("[data-name='Place']")).to_have_text(["1", "2"])
            expect(rows.locator("[data-name='Model']")).to_have_text(["smollm2", "smollm2"])
            expect(rows.locator("[data-name='Waits for']").first).to_contain_text(" s")
            stack.backends[0].signal(signal.SIGCONT)
            assert [one.result()[0] for one in asked] == [200, 200]
    finally:
        stack.backends[0].signal(signal.SIGCONT)
    expect(page.locator("#queue")).to_have_text("nobody waits")


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


@pytest.mark.parametrize(
    ("flags", "environment"), [((), {"SOLLOL_DASHBOARD": "false"}), (("--no-dashboard",), {})]
)
def test_turned_off_dashboard_is_not_there(
    stack: RouterStack, flags: tuple[str, ...], environment: dict[str, str]
) -> None:
    stack.router.terminate()
    stack.router.wait(30)
    command = [sys.executable, "-m", "harness.router", "--config", str(stack.config), *flags]
    with (stack.folder / "off.log").open("ab") as log:
        router = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: listens(stack.port), 20, "router")
        for path in ("/dashboard", "/dashboard/events", "/dashboard/session"):
            assert stack.call(path, key=None)[0] == 404
    finally:
        router.terminate()
        router.wait(30)
        stack.start_router()
    assert stack.call("/dashboard", key=None)[0] == 200
