"""The live page in a real browser: headless Chromium, as Debian has it."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright
from sites import START_MS, Site, population, settings

from stream_forecaster.demo_page import DemoPage
from stream_forecaster.edge.viewers import MOST_VIEWERS, Question, key_id
from stream_forecaster.synth import SyntheticEvent

_CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.timeout(240),
]

_FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --disable-dev-shm-usage""".split()  # noqa: SIM905  (a list of words reads better)
_DESK: ViewportSize = {"width": 1280, "height": 900}
_PHONE: ViewportSize = {"width": 360, "height": 740}
_PATIENT_MS = 30_000
_FIRST_PAINT_MS = 1_000
_CHOSEN_S = 2.5
"""Longer than the second in which a process that has forecast chooses whose fans to keep."""
_NOTHING = "\N{EN DASH}"
"""What stands where a number is not known."""
_MINUTE_MS = 60_000
_HISTORY_MS = 150 * _MINUTE_MS
_HOSTILE = (
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "\u202egnp.exe\u0007",
    "long-" + "W" * 240,
    " ",
    "javascript:alert(1)",
    "a/b?c=d#e&f",
    "鍵🔑",
)


def _event(key: str, at_ms: int) -> SyntheticEvent:
    value = json.dumps({"user_id": key, "ts": at_ms}).encode()
    return SyntheticEvent(at_ms, at_ms, key.encode(), value, None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for all tests."""
    expect.set_options(timeout=_PATIENT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Users for some hours, hostile ones among them."""
    users = population()
    with Site(settings(), users.events(START_MS, START_MS + _HISTORY_MS)) as site:
        site.wait_until_read()
        time.sleep(_CHOSEN_S)
        site.write(_event(key, site.end_ms) for key in _HOSTILE)
        for _ in range(8):  # so that there are fans to look back at
            begin_ms = site.end_ms
            site.write(users.events(begin_ms, begin_ms + 3 * _MINUTE_MS))
            site.wait_until_read()
        yield site


class Visit:
    """A page that is open, and what went wrong in it."""

    def __init__(self, page: Page) -> None:
        self.page, self.wrong, self.hosts = page, list[str](), set[str]()
        page.set_default_timeout(_PATIENT_MS)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def script(self, text: str) -> Any:
        """What a script comes to."""
        return self.page.evaluate(text)

    def see(self, selector: str, text: str) -> None:
        """Wait until an element has a text."""
        expect(self.page.locator(selector)).to_contain_text(text)

    def painted(self, selector: str) -> bool:
        """Is there a chart that can be seen, with something in it?"""
        return bool(
            self.script(
                f"""[...document.querySelectorAll({json.dumps(selector)})].every((canvas) => {{
                    const box = canvas.getBoundingClientRect();
                    const {{ width, height }} = canvas;
                    const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
                    return box.width > 100 && box.height > 100 && pixels.some((value) => value);
                }})"""
            )
        )


Open = Callable[..., Any]


@contextmanager
def _visit(
    browser: Browser, url: str, size: ViewportSize = _DESK, *, scheme: Any = "light"
) -> Iterator[Visit]:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    visit = Visit(context.new_page())
    visit.page.goto(url)
    try:
        yield visit
    finally:
        context.close()


def _until(holds: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < give_up_s
        time.sleep(0.1)


def _of(site: Site, key: str) -> str:
    return f"{site.url}#/key/{key_id(key.encode())}"


def test_every_panel_of_the_overview_shows_data(browser: Browser, site: Site) -> None:
    """Rates, lag, watermark, keys, quality by resolution, partitions, refusals, and a fan."""
    with _visit(browser, site.url) as visit:
        page = visit.page
        visit.see("#status", "live")
        expect(page.locator("#tiles > div")).to_have_count(6)
        assert _NOTHING not in " ".join(page.locator("#tiles dd").all_text_contents())
        expect(page.locator("#quality > section")).to_have_count(3)
        visit.see("#quality > section >> nth=0", "than the last value")
        expect(page.locator("#quality > section:first-child .gauge")).to_have_count(2)
        assert page.locator("#quality > section:first-child .bar:visible").count() >= 6
        visit.see("#partitions tbody", "held")
        assert page.locator("#rejects .bar").count() >= 3
        expect(page.locator("#hero canvas")).to_be_visible()
        assert visit.painted("#hero canvas")
        assert page.locator("#keys a:visible").count() >= 30
        visit.see("#event-time", "Mon 5 Jan, 02:")
        visit.see("#pipeline", "shop · events")
        assert visit.wrong == []
        assert visit.hosts == {site.url.split("/")[2]}


def test_every_panel_of_a_key_shows_data(browser: Browser, site: Site) -> None:
    """Intent and quality, windows and fans by resolution, weights, and the message."""
    with _visit(browser, site.url) as visit:
        page = visit.page
        page.locator("#keys a").first.click()
        name = page.locator("#keys a[aria-current] .name").text_content() or ""
        visit.see("#key-name", name)
        visit.see("#key-note", "issued Mon 5 Jan")
        expect(page.locator("#intent > div")).to_have_count(6)
        assert _NOTHING not in " ".join(page.locator("#intent dd").all_text_contents())
        visit.see("#intent", "per minute, of late")
        expect(page.locator("#charts canvas")).to_have_count(3)
        assert visit.painted("#charts canvas")
        expect(page.locator("#experts section")).to_have_count(3)
        visit.see("#experts section >> nth=0", "%")
        page.locator("summary").click()
        message = json.loads(page.locator("#message").text_content() or "")
        assert (message["schema"], message["key"]) == ("forecast/1", name)
        assert len(message["resolutions"][0]["mean"]) == 30
        assert visit.wrong == []


def test_earlier_fans_are_held_against_what_came_true(browser: Browser, site: Site) -> None:
    """The slider goes back, by keyboard too, and says how that forecast has fared."""
    with _visit(browser, site.url) as visit:
        page = visit.page
        page.locator("#keys a").first.click()
        slider = page.locator("#charts > section:first-child input[type=range]")
        expect(slider).to_be_visible()
        output = "#charts > section:first-child output"
        visit.see(output, "now")
        slider.focus()
        for _ in range(5):
            page.keyboard.press("ArrowLeft")
        visit.see(output, "came true inside 80 %")
        assert visit.wrong == []


@pytest.mark.parametrize(
    ("quantiles", "intervals", "fared", "hint"),
    [
        ([0.5], [], r"^as issued .* [1-9]\d* came true$", r"^next [\d.,]+$"),
        (
            [0.05, 0.5, 0.95],
            ["90 %"],
            r"\d+ of \d+ came true inside 90 %$",
            r"^next \S+, 90 % between",
        ),
    ],
)
def test_other_quantiles_are_shown_as_what_they_are(
    browser: Browser, quantiles: list[float], intervals: list[str], fared: str, hint: str
) -> None:
    """Every interval has its own name; where there is none there is the mean, and no miss."""
    users = population(10)
    log = users.events(START_MS, START_MS + 40 * _MINUTE_MS)
    with Site(settings(quantiles=quantiles), log) as site, _visit(browser, site.url) as visit:
        page = visit.page
        site.wait_until_read()
        page.locator("#keys a").first.click()
        visit.see("#key-note", "events")
        for _ in range(4):  # from now on there are fans to look back at
            begin_ms = site.end_ms
            site.write(users.events(begin_ms, begin_ms + 2 * _MINUTE_MS))
            site.wait_until_read()
            time.sleep(0.1)
        chart = page.locator("#charts > section:first-child")
        slider = chart.locator("input[type=range]")
        expect(slider).to_be_visible()
        assert visit.painted("#charts canvas")
        assert chart.locator(".legend li").all_text_contents() == [
            "forecast",
            *intervals,
            "came true",
            *(f"outside {interval}" for interval in intervals),
            "moving average",
        ]
        label = chart.locator(".plot").get_attribute("aria-label") or ""
        assert re.findall(r"[\d.]+ %", label) == intervals

        plot = chart.locator(".u-over").bounding_box()
        assert plot is not None
        page.mouse.move(plot["x"] + 0.9 * plot["width"], plot["y"] + 40)
        tip = chart.locator(".tip")
        expect(tip).to_contain_text(re.compile(r"forecast  [\d.,]+"))
        assert re.findall(r"([\d.]+ %)  \S+ to \S", tip.text_content() or "") == intervals

        slider.focus()
        page.keyboard.press("Home")
        expect(chart.locator("output")).to_have_text(re.compile(fared))
        expect(page.locator("#keys a .next").first).to_have_attribute("title", re.compile(hint))
        assert visit.wrong == []


def test_keys_that_are_markup_are_text(browser: Browser, site: Site) -> None:
    """Nothing that a key says is run, loaded or obeyed; what cannot be seen is spelled out."""
    with _visit(browser, site.url) as visit:
        page = visit.page
        page.get_by_role("button", name="Newest").click()
        visit.see("#keys", "<script>window.pwned = 1</script>")
        visit.see("#keys", "<img src=x onerror='window.pwned = 1'>")
        visit.see("#keys", r"\u{202e}gnp.exe\u{7}")
        for key in _HOSTILE:
            page.goto(_of(site, key))
            visit.see("#key-note", "1 events")
            assert page.title().endswith("stream_forecaster")
        assert visit.script(
            "[window.pwned, document.querySelectorAll('main img, nav img').length]"
        ) == [None, 0]
        assert visit.script("document.scripts.length") == 2
        assert visit.wrong == []


def test_a_key_that_is_not_known_is_said_to_be_so(browser: Browser, site: Site) -> None:
    """With the reasons it may have."""
    with _visit(browser, _of(site, "nobody")) as visit:
        visit.see("#key-note", "This process does not have this key")
        expect(visit.page.locator("#charts")).to_be_hidden()
        assert visit.wrong == []


def test_everything_can_be_done_by_keyboard(browser: Browser, site: Site) -> None:
    """Search with /, go through the list with arrows, open with Enter, back with Escape."""
    with _visit(browser, site.url) as visit:
        page = visit.page
        expect(page.locator("#keys a").first).to_be_visible()
        page.keyboard.press("/")
        expect(page.locator("#search")).to_be_focused()
        page.keyboard.type("STEADY")
        visit.see("#keys-note", " of ")
        expect(page.locator("#keys a:visible").first).to_contain_text("steady")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        second = page.locator("#keys a").nth(1)
        expect(second).to_be_focused()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowUp")
        expect(page.locator("#search")).to_be_focused()
        page.keyboard.press("Enter")
        visit.see("#key-name", "steady-")
        page.keyboard.press("Escape")
        expect(page.locator("#search")).to_have_value("")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        expect(page.locator("#overview")).to_be_visible()
        assert visit.wrong == []


def test_everything_that_can_be_used_has_a_name(browser: Browser, site: Site) -> None:
    """For readers who hear the page, charts included."""
    with _visit(browser, site.url) as visit:
        visit.page.locator("#keys a").first.click()
        expect(visit.page.locator("#charts canvas")).to_have_count(3)
        nameless = visit.script(
            """[...document.querySelectorAll("a, button, input, [role=img], nav, section")]
                .filter((e) => e.checkVisibility() && !(e.ariaLabel || e.textContent.trim()
                    || e.labels?.[0]?.textContent.trim()))
                .map((e) => e.outerHTML.slice(0, 80))"""
        )
        assert nameless == []


@pytest.mark.parametrize("place", ["", "long"])
def test_a_phone_shows_it_all_without_scrolling_sideways(
    browser: Browser, site: Site, place: str
) -> None:
    """The overview, and a key with a name that is longer than the screen."""
    url = _of(site, _HOSTILE[3]) if place else site.url
    with _visit(browser, url, _PHONE) as visit:
        visit.see("#status", "live")
        canvas = visit.page.locator("#charts canvas" if place else "#hero canvas").first
        expect(canvas).to_be_visible()
        wide = visit.script(
            """[document.documentElement.scrollWidth, ...[...document.querySelectorAll("main *")]
                .map((e) => e.getBoundingClientRect().right)].reduce((a, b) => Math.max(a, b))"""
        )
        assert visit.script("document.documentElement.scrollWidth") <= _PHONE["width"]
        assert wide <= _PHONE["width"] + 1
        assert visit.wrong == []


def test_light_and_dark_follow_the_system(browser: Browser, site: Site) -> None:
    """While the page is open, too; text stays far from its ground."""
    with _visit(browser, site.url, scheme="dark") as visit:
        visit.see("#status", "live")
        body = "getComputedStyle(document.body)"
        colors = f"[{body}.backgroundColor, {body}.color]"
        dark = visit.script(colors)
        visit.page.emulate_media(color_scheme="light")
        light = visit.script(colors)

    def brightness(color: str) -> int:
        return sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(",")))

    assert brightness(dark[1]) - brightness(dark[0]) > 500
    assert brightness(light[0]) - brightness(light[1]) > 500


def test_a_page_that_nobody_sees_asks_for_nothing(browser: Browser, site: Site) -> None:
    """It says that it is paused, and goes on when it is looked at again."""
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with _visit(browser, site.url) as visit:
        visit.see("#status", "live")
        visit.page.evaluate(hide, True)  # noqa: FBT003  (what the script is called with)
        visit.see("#status", "paused")
        _until(lambda: not site._viewers.asked())
        visit.page.evaluate(hide, False)  # noqa: FBT003
        visit.see("#status", "live")


@pytest.mark.parametrize("in_demo", [False, True])
def test_one_page_too_many_says_so_until_there_is_room(
    browser: Browser, site: Site, *, in_demo: bool
) -> None:
    """Not that the connection is lost, nor, in the demo, that the worker is gone."""
    demo = DemoPage({}, lambda: int(site.url.rstrip("/").rpartition(":")[2]))
    _until(lambda: not site._viewers.asked())  # those of the test before have left
    with closing(demo), ExitStack() as others:
        for _ in range(MOST_VIEWERS):
            others.enter_context(site._viewers.watching([Question("overview")]))
        with _visit(browser, demo.url if in_demo else site.url) as visit:
            visit.see("#banner", "Too many pages are open: close one")
            visit.page.evaluate(
                """() => { const banner = document.querySelector("#banner"); window.said = [];
                new MutationObserver(() => window.said.push(banner.textContent))
                    .observe(banner, { childList: true, subtree: true, attributes: true }); }"""
            )
            visit.page.wait_for_timeout(3_000)
            assert visit.script("window.said") == []
            visit.see("#status", "too many pages")
            others.close()
            visit.see("#status", "live")
            expect(visit.page.locator("#banner")).to_be_hidden()


def test_first_paint_comes_within_a_second(browser: Browser, site: Site) -> None:
    """The best of three: the machine may have other things to do."""
    paints = []
    for _ in range(3):
        with _visit(browser, site.url) as visit:
            expect(visit.page.locator("#tiles > div")).to_have_count(6)
            paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            paints.append(visit.script(paint))

    assert min(paints) < _FIRST_PAINT_MS


def test_it_says_when_there_is_nothing_yet(browser: Browser) -> None:
    """And stops saying so with the first event."""
    with Site(settings()) as site, _visit(browser, site.url) as visit:
        visit.see("#banner", "Nothing yet")
        visit.see("#keys-note", "No key yet")
        site.write([_event("first", START_MS)])
        visit.see("#keys", "first")
        expect(visit.page.locator("#banner")).to_be_hidden()
        assert visit.wrong == []


def test_a_process_that_has_just_started_shows_nothing_of_the_one_before(browser: Browser) -> None:
    """What has been scored is counted since the start: no gauge is left standing."""
    users = population(20)
    site = Site(settings(), users.events(START_MS, START_MS + 30 * _MINUTE_MS))
    with site, _visit(browser, site.url) as visit:
        gauges = visit.page.locator("#quality .gauge:visible")
        visit.see("#quality > section >> nth=0", "than the last value")
        assert gauges.count() >= 2
        site.stop()
        site.start()
        visit.see("#banner", "The worker has restarted")
        visit.see("#quality > section >> nth=0", "no forecast has come due since the start")
        expect(gauges).to_have_count(0)


def test_before_there_is_a_fan_there_is_no_frame_for_one(browser: Browser) -> None:
    """Nor a slider, to nowhere; both come with the first key."""
    with Site(settings()) as site, _visit(browser, site.url) as visit:
        visit.see("#banner", "Nothing yet")
        for frame in (".hero", "input[type=range]"):
            expect(visit.page.locator(f"{frame}:visible")).to_have_count(0)
        site.write([_event("first", START_MS)])
        expect(visit.page.locator(".hero canvas")).to_be_visible()


def test_it_says_when_the_connection_is_lost_and_when_the_worker_is_back(browser: Browser) -> None:
    """By itself: nobody has to load the page again."""
    users = population(20)
    site = Site(settings(), users.events(START_MS, START_MS + 30 * _MINUTE_MS))
    with site, _visit(browser, site.url) as visit:
        site.wait_until_read()
        visit.see("#status", "live")
        visit.page.locator("#keys a").first.click()
        visit.see("#key-note", "events")
        site.stop()
        visit.see("#banner", "Connection lost: what you see is from 00:30. Trying again")
        site.start()
        visit.see("#banner", "The worker has restarted: state restored, forecasts go on.")
        visit.see("#status", "live")
        expect(visit.page.locator("#banner")).to_be_hidden()
