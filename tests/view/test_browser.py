"""The page in a real browser: Debian's Chromium without a window, at a desk's and a phone's width."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from job.store import open_store
from job.view import page
from job.view.stored_run import StoredRun, read
from tests.view.runs import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
REQUIRED = bool(os.environ.get("CI")) or "browser" in os.environ.get("MICRONET_REQUIRE", "").split(",")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not REQUIRED, reason="no Chromium here (apt-get install chromium)"
)

WIDTHS = {"desktop": 1280, "phone": 390}
SERIOUS = {"serious", "critical"}
HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root, as which a container runs this; the page is ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A long run and a compressed one with three kills, three seeds, an unfinished and a hostile one."""
    folder = tmp_path_factory.mktemp("pages")

    def stored_run(name: str, **how: Any) -> StoredRun:
        store = open_store(str(folder / name))
        write_run(store, **how)
        return read(store)

    few, of_few = [f"class {index}" for index in range(12)], ["a", "b", "c"] * 4  # axe reads every cell
    contents = {
        "long": [stored_run("long", kills=3)],
        "one": [stored_run("one", epochs=12, kills=3, compressed=True)],
        "seeds": [
            stored_run(f"seed-{seed}", seed=seed, epochs=6, kills=seed % 2, classes=few, superclasses=of_few)
            for seed in range(3)
        ],
        "unfinished": [stored_run("unfinished", epochs=12, kills=1, finished=False)],
        "hostile": [
            replace(
                stored_run(
                    "hostile",
                    epochs=5,
                    run_id=HOSTILE,
                    classes=[f"{HOSTILE}{index}" for index in range(10)],
                    superclasses=[HOSTILE] * 5 + ["b"] * 5,
                ),
                uri=f"s3://bucket/{HOSTILE.replace('/', '')}",
            )
        ],
    }
    paths = {}
    for name, runs in contents.items():
        paths[name] = folder / f"{name}.html"
        paths[name].write_text(page.render(runs), "utf-8")
    return paths


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    """One tab for all pages; a new one takes a second."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


@pytest.fixture
def visit(tab: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """Load a page; it must write nothing to the console and request nothing from the network."""
    problems: list[str] = []
    heard = {
        "console": lambda message: problems.append(message.text),
        "pageerror": lambda error: problems.append(str(error)),
        "request": lambda request: problems.append(request.url),
    }
    for event, note in heard.items():
        tab.on(event, note)

    def visit(name: str, width: int = WIDTHS["desktop"], scheme: str = "light") -> Any:
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        tab.goto(pages[name].as_uri())
        return tab

    yield visit
    for event, note in heard.items():
        tab.remove_listener(event, note)
    assert [one for one in problems if not one.startswith(("file:", "data:image/png"))] == []


def violations(tab: Any, rules: list[str] | None = None) -> list[dict[str, Any]]:
    """Return what axe finds on the loaded page by `rules`, or by all of its own."""
    if not tab.evaluate("typeof axe !== 'undefined'"):
        tab.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8"))
    options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
    found: list[dict[str, Any]] = tab.evaluate("options => axe.run(options)", options)["violations"]
    return found


def open_all(tab: Any) -> None:
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


@pytest.mark.parametrize("name", ["long", "one", "seeds", "unfinished", "hostile"])
def test_nothing_is_wider_than_the_window(visit: Any, name: str) -> None:
    tab = visit(name)
    open_all(tab)
    for width in WIDTHS.values():
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("name", ["one", "seeds", "unfinished"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit: Any, name: str, scheme: str) -> None:
    """Of axe's rules, only that of the contrast depends on the colour scheme."""
    tab = visit(name, scheme=scheme)
    open_all(tab)
    for width in WIDTHS.values():
        tab.set_viewport_size({"width": width, "height": 900})
        found = violations(tab, ["color-contrast"] if scheme == "dark" else None)
        assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS] == []


def test_axe_sees_what_is_wrong(browser: Any) -> None:
    """Else the test above could not fail."""
    tab = browser.new_page()
    tab.set_content(
        "<html><body><img src='data:,'><p style='color:#bbb;background:#fff'>pale</p></body></html>"
    )
    assert {"image-alt", "color-contrast"} <= {one["id"] for one in violations(tab)}
    assert {one["id"] for one in violations(tab, ["color-contrast"])} == {"color-contrast"}
    tab.close()


def test_light_and_dark_are_two_looks(visit: Any) -> None:
    grounds = [
        visit("one", scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    brightness = [sum(map(int, ground[4:-1].split(","))) for ground in grounds]
    assert brightness[0] > 600 > 200 > brightness[1]


def test_the_epoch_is_chosen_with_the_keyboard(visit: Any) -> None:
    tab = visit("one")
    tab.locator("#epoch").focus()
    tab.keyboard.press("Home")
    readout = tab.locator("figure.plot .readout").nth(1)
    assert readout.text_content().startswith("epoch 1:  test ")
    tab.keyboard.press("ArrowRight")
    assert readout.text_content().startswith("epoch 2:  test ")
    row = tab.locator("table.epochs tbody tr").nth(1).locator("td")
    assert row.nth(1).text_content() in readout.text_content()


def test_a_readout_separates_a_runs_name_from_its_value(visit: Any) -> None:
    tab = visit("seeds")
    tab.locator("#epoch").focus()
    tab.keyboard.press("Home")
    text = tab.locator("figure.plot .readout").first.text_content()
    assert re.fullmatch(r"epoch 1:  seed-0: [\d.]+ %   seed-1: [\d.]+ %   seed-2: [\d.]+ %", text)


def test_the_epoch_follows_the_pointer(visit: Any) -> None:
    tab = visit("long")
    box = tab.locator("figure.plot .box").first
    box.hover(position={"x": box.bounding_box()["width"] / 2, "y": 20})
    assert tab.locator(".slider output").text_content() in ("300", "301")
    assert tab.locator("figure.plot .readout").first.text_content().startswith("epoch 30")


def test_everything_that_acts_is_reached_by_tabbing(visit: Any) -> None:
    tab = visit("one", WIDTHS["phone"])
    wanted = tab.evaluate(
        "[...document.querySelectorAll('a, summary, input, [tabindex]')]"
        ".filter((each) => each.checkVisibility()).length"
    )
    reached = set()
    for _ in range(wanted + 1):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.outerHTML.slice(0, 200)"))
    assert len(reached - {"<body>"}) >= wanted
    assert "Skip to the figures" in next(one for one in reached if "skip" in one)


def test_a_hostile_name_is_shown_and_not_run(visit: Any) -> None:
    tab = visit("hostile")
    open_all(tab)
    assert tab.title() != "run"
    assert tab.locator("h1").text_content() == HOSTILE.replace("/", "")


def test_screenshots_can_be_looked_at(visit: Any, tmp_path: Path) -> None:
    """They go to MICRONET_SCREENSHOTS where that is set."""
    folder = Path(os.environ.get("MICRONET_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("one", "long", "seeds"):
        for device, width in WIDTHS.items():
            for scheme in ("light", "dark") if "MICRONET_SCREENSHOTS" in os.environ else ("light",):
                shot = folder / f"{name}-{device}-{scheme}.png"
                visit(name, width, scheme).screenshot(path=shot, full_page=True)
                assert shot.stat().st_size > 50_000
