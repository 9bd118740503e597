"""The report in a browser: it loads without a complaint and without the network, and answers clicks and keys."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.data.datasets import ArrayDataset, DataSource

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
NAMES = ("größer", "🍑", "</b><i>third")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    net = nn.Sequential()
    for number, name in enumerate(NAMES):
        net.add_module(name, nn.Linear(6 if number == 0 else 8, 8))
        net.add_module(f"relu{number}", nn.ReLU())
    net.add_module("last", nn.Linear(8, 3))
    part = ArrayDataset(torch.randn(24, 6), torch.arange(24) % 3)
    out = tmp_path_factory.mktemp("browser") / "run"
    method, quiet = prunus.DirichletPruning(min_steps=4), prunus.RunSettings(modes=())
    prunus.compress(
        net,
        DataSource("noise", part, part, part, 3),
        method=method,
        target="macs<=60%",
        out=out,
        progress=False,
        run=quiet,
    )
    return prunus.report(out).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    opened.goto(address)
    opened.wait_for_selector("html[data-ready]")
    yield opened
    opened.close()
    assert said == [], "nothing complained of, nothing fetched"


def test_every_chart_is_drawn_and_names_are_texts(page: Any) -> None:
    charts = page.locator(".chart")
    assert charts.count() >= 5
    for number in range(charts.count()):
        assert charts.nth(number).locator("svg").count() == 1
    assert page.locator("#group-table tbody th").all_inner_texts() == list(NAMES)
    drawn = page.locator("#chart-network svg text").all_text_contents()
    assert set(NAMES) <= set(drawn)


def test_the_slider_shows_other_plans(page: Any) -> None:
    says = page.locator("#budget-says")
    assert "(this run's plan)" in says.inner_text()
    before = says.inner_text()
    page.focus("#budget")
    page.keyboard.press("Home")
    smallest = says.inner_text()
    page.keyboard.press("End")
    largest = says.inner_text()
    macs = [int(text.split(" MACs")[0].replace(",", "")) for text in (smallest, before, largest)]
    assert macs == sorted(macs)
    assert page.locator("#budget").get_attribute("aria-valuetext") == largest
    page.locator("#budget").click(position={"x": 3, "y": 8})
    assert says.inner_text() == smallest


@pytest.mark.parametrize("by_key", [False, True])
def test_tables_are_sorted_by_click_and_key(page: Any, by_key: bool) -> None:
    head = page.locator("#group-table thead th").nth(2)

    def press() -> list[int]:
        if by_key:
            head.locator("button").focus()
            page.keyboard.press("Enter")
        else:
            head.locator("button").click()
        return [int(text) for text in page.locator("#group-table tbody td:nth-child(3)").all_inner_texts()]

    falling = press()
    assert falling == sorted(falling, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    assert press() == sorted(falling)
    assert page.locator("#group-table thead th").nth(0).get_attribute("aria-sort") == "none"


def test_a_group_is_chosen_by_click(page: Any) -> None:
    assert page.locator("#chosen-group").inner_text() == NAMES[0]
    page.locator(".choose").nth(2).click()
    assert page.locator("#chosen-group").inner_text() == NAMES[2]
    assert page.locator(".choose").nth(2).get_attribute("aria-pressed") == "true"


def test_what_is_locked_says_why_by_mouse_and_by_key(page: Any) -> None:
    row = page.locator("#chart-network svg text", has_text="last").bounding_box()
    area = page.locator("#chart-network").bounding_box()
    page.mouse.move(area["x"] + 274, row["y"] + row["height"] / 2)
    page.wait_for_function("document.body.innerText.includes('locked: is an output of the model')")
    page.mouse.move(0, 0)
    page.locator("#chart-network").focus()
    for _ in range(len(NAMES) + 2):
        page.keyboard.press("ArrowDown")
    assert "locked: is an output of the model" in page.locator("#spoken").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#spoken").inner_text() == ""


def test_dark_and_light_and_narrow(page: Any) -> None:
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
