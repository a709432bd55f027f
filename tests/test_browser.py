"""report.html and sweep.html in a real browser, headless: what is seen, what a click does, what is fetched.

They need Debian's chromium and chromium-driver, or Chrome and its driver. The test of accessibility needs
axe-core too: the path of axe.min.js in QUANTLIB_AXE, or node_modules/axe-core in this checkout.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pages
import pytest
from test_page import HOSTILE

from quantlib.report.page.report import write_reports
from quantlib.sweep.page import FILE as SWEEP
from quantlib.sweep.page import write_page

ROOT = Path(__file__).parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
AXE = Path(os.environ.get("QUANTLIB_AXE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))
PHONE, DESK = (390, 844), (1280, 900)

selenium = pytest.importorskip("selenium", reason="selenium is not installed: the extra `test` has it")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="no browser: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output directory of two tasks, one of them with hostile texts and labels; and a sweep's page."""
    directory = tmp_path_factory.mktemp("browser") / "runs"
    pages.write_task(directory / "news")
    labels = ("<b>bold</b>", '" onmouseover="alert(1)', "\u202eright to left")
    task = replace(pages.NEWS, name="<script>alert(1)</script>", labels=labels)
    pages.write_task(directory / "hostile", task, texts=HOSTILE, notes={"quant_1": "<img src=x>"})
    write_reports(directory)
    write_page(directory, pages.sweep_table())
    return directory


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options=options, service=Service(executable_path=DRIVER))
    chrome.execute_cdp_cmd("Network.enable", {})
    yield chrome
    chrome.quit()


def opened(driver: Any, page: Path, size: tuple[int, int] = DESK, **media: str) -> Any:
    """The browser with a page, in a window of that size; media: features such as prefers-color-scheme."""
    width, height = size
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get_log("performance")
    driver.get_log("browser")
    driver.get(file_of(page).as_uri())
    return driver


def file_of(page: Path) -> Path:
    """A page, or that of a task's directory."""
    return page if page.suffix else page / "report.html"


def value(driver: Any, script: str) -> Any:
    return driver.execute_script(f"return {script}")


def requests(driver: Any) -> list[str]:
    """What the browser asked for since the page was opened."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("page", ["news", "hostile", ".", SWEEP])
def test_nothing_is_fetched_logged_or_run(driver: Any, runs: Path, page: str) -> None:
    opened(driver, runs / page)
    assert set(requests(driver)) == {file_of(runs / page).as_uri()}
    assert driver.get_log("browser") == []
    assert value(driver, "document.querySelectorAll('script, img, iframe, b').length") == 1
    assert driver.title == "Sweep of 9 cells" if page == SWEEP else "what to ship" in driver.title


def test_a_style_that_does_not_belong_to_the_page_is_blocked(driver: Any, runs: Path) -> None:
    opened(driver, runs / "news")
    script = """
        const added = document.createElement('script'); added.textContent = 'window.ran = true';
        document.body.append(added); return window.ran === true"""
    assert driver.execute_script(script) is False
    assert any("Content Security Policy" in entry["message"] for entry in driver.get_log("browser"))


def test_what_is_seen_first(driver: Any, runs: Path) -> None:
    opened(driver, runs / "news")
    assert value(driver, "document.querySelector('h1').innerText") == "news: what to ship"
    cards = value(driver, "[...document.querySelectorAll('.card')].map(card => card.innerText)")
    assert [card.splitlines()[1] for card in cards] == ["quant_1", "student_quant_1"]
    below = value(driver, "document.querySelector('.cards').getBoundingClientRect().bottom")
    assert below < DESK[1], "the answer needs no scrolling"


@pytest.mark.parametrize(("name", "first"), [("speedup", "teacher"), ("size", "student_quant_1")])
def test_a_click_sorts_and_another_one_turns_it_round(driver: Any, runs: Path, name: str, first: str) -> None:
    opened(driver, runs / "news")
    column = f"""[...document.querySelectorAll('#task-1-table ~ .scroll th')].find(
        th => th.querySelector('.label').innerText.startsWith('{name}'))"""
    variants = (
        "[...document.querySelectorAll('#task-1-table ~ .scroll tbody th .name')].map(e => e.textContent)"
    )
    original = value(driver, variants)
    seen = []
    for direction in ("ascending", "descending"):
        driver.execute_script(f"{column}.querySelector('button.sort').click()")
        assert value(driver, f"{column}.getAttribute('aria-sort')") == direction
        assert value(driver, "document.querySelectorAll('[aria-sort]').length") == 1
        seen.append(value(driver, variants))
    assert seen[0][0] == first and seen[1] == seen[0][::-1] and sorted(seen[0]) == sorted(original)


def test_columns_are_explained_by_keyboard(driver: Any, runs: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(driver, runs / "news")
    button = driver.find_element("css selector", "button[popovertarget=column-agreement]")
    button.send_keys(Keys.ENTER)
    explanation = driver.find_element("id", "column-agreement")
    assert explanation.is_displayed() and "share of rows with the teacher's label" in explanation.text
    button.send_keys(Keys.ESCAPE)
    assert not explanation.is_displayed()


def test_all_columns_on_demand_without_the_script(driver: Any, runs: Path) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(driver, runs / "news")
        header = driver.find_element("css selector", "th.more")
        assert not header.is_displayed()
        driver.find_element("css selector", "input.all").click()
        assert header.is_displayed()
        assert not driver.find_elements("css selector", "button.sort")
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("page", ["news", "hostile", ".", SWEEP])
def test_nothing_is_wider_than_the_window(driver: Any, runs: Path, page: str, size: tuple[int, int]) -> None:
    opened(driver, runs / page, size)
    driver.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    root = "document.documentElement"  # its client's width leaves out the scroll bar
    assert value(driver, f"[{root}.scrollWidth, innerWidth]") == [
        value(driver, f"{root}.clientWidth"),
        size[0],
    ]


def test_the_narrow_plot_is_for_the_phone(driver: Any, runs: Path) -> None:
    shown = "[...document.querySelectorAll('.on-desk, .on-phone')].map(e => e.getClientRects().length > 0)"
    assert value(opened(driver, runs / "news"), shown) == [True, False]
    assert value(opened(driver, runs / "news", PHONE), shown) == [False, True]


def test_it_is_dark_where_that_is_wanted(driver: Any, runs: Path) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = value(opened(driver, runs / "news", prefers_color_scheme="light"), colour)
    dark = value(opened(driver, runs / "news", prefers_color_scheme="dark"), colour)
    assert light == "rgb(255, 255, 255)" and dark != light
    assert value(driver, "getComputedStyle(document.querySelector('svg text')).fill") != "rgb(0, 0, 0)"


def test_it_is_printed_light_and_whole(driver: Any, runs: Path) -> None:
    opened(driver, runs / "news", prefers_color_scheme="dark")
    printed = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF") and len(printed) > 20_000
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    assert value(driver, "getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert value(driver, "getComputedStyle(document.querySelector('nav')).display") == "none"
    assert value(driver, "document.querySelector('#column-agreement').getClientRects().length") == 1


@pytest.mark.skipif(not AXE.is_file(), reason=f"no axe-core at {AXE}: npm install axe-core, or QUANTLIB_AXE")
@pytest.mark.parametrize(
    ("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk-light", "phone-dark"]
)
@pytest.mark.parametrize("page", ["news", ".", SWEEP])
def test_axe_finds_no_violation(
    driver: Any, runs: Path, page: str, size: tuple[int, int], scheme: str
) -> None:
    opened(driver, runs / page, size, prefers_color_scheme=scheme)
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    driver.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = driver.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run().then(done, error => done(String(error)))"
    )
    assert isinstance(found, dict), found
    assert found["passes"]
    assert [
        (each["id"], [(node["html"][:200], node["failureSummary"]) for node in each["nodes"][:3]])
        for each in found["violations"]
    ] == []
