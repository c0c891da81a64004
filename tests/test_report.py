import io
import json
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streams
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typing_extensions import override

from stream_forecaster import backtest, cli, labels, passes
from stream_forecaster.calendar import DAY_MS, LATEST_MS, Calendar
from stream_forecaster.config import Settings, parse, redacted
from stream_forecaster.edge.files import read_events
from stream_forecaster.errors import ConfigError
from stream_forecaster.report import Report
from stream_forecaster.report_contents import Fan, Series
from stream_forecaster.report_page import shown
from stream_forecaster.report_plots import Plot, ticks, time_ticks
from stream_forecaster.scoring import POOL, PUBLISHED

# The network is not what is on trial here, and the experts alone are quicker.
SETTINGS = parse(redacted(streams.settings()) | {"model": {"network": False}})
_SCRIPT = "<script>alert(1)</script>"
_IMAGE = "\"'><img src=x onerror=alert(1)>é\u202e&amp;"
_VOID = frozenset(["meta", "input", "br"])


class Page(HTMLParser):
    """A page taken apart: tags with attributes, texts, and table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    @override
    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._open and self._open[-1] in {"td", "th"}:
            self.rows[-1][-1] += data

    def count(self, tag: str) -> int:
        """How many there are of a tag."""
        return sum(name == tag for name, _ in self.tags)


def write_events(path: Path, size: int = 600) -> str:
    """Events of six users, two of whom have names that want to be markup."""
    lines = [value or b"" for _, value, _ in streams.busy_log(size)]
    names = {"ann": _SCRIPT, "bob": _IMAGE}
    events = [json.loads(line) for line in lines]
    renamed = [e | {"user_id": names.get(e["user_id"], e["user_id"])} for e in events]
    path.write_text("".join(json.dumps(event) + "\n" for event in renamed))
    return str(path)


@pytest.fixture
def events(tmp_path: Path) -> str:
    """A file of 600 events over two and a half hours."""
    return write_events(tmp_path / "events.jsonl")


def run(events: str, folder: Path | None, settings: Settings = SETTINGS, **options: Any) -> str:
    """What a backtest prints that writes its report to `folder`."""
    out = io.StringIO()
    console = Console(file=out, width=100)
    where = None if folder is None else str(folder)
    backtest.backtest(settings, [events], report=where, console=console, **options)
    return out.getvalue()


def page_of(events: str, folder: Path, settings: Settings = SETTINGS, **options: Any) -> str:
    """The page as text."""
    run(events, folder, settings, **options)
    return (folder / "index.html").read_text("utf-8")


def watch(events: str, partitions: int = 1) -> Report:
    """A report that has seen a whole log, five records a turn."""
    watching = Report(SETTINGS, str(Path(events).with_suffix(".report")))
    blocks = read_events([events], SETTINGS.input, partitions=partitions, block_records=5)
    for _ in passes.Pass(SETTINGS, watching).turns(blocks):
        pass
    return watching


# -- the page --------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing(events: str, tmp_path: Path) -> None:
    """No script, no link, no address of anything; and its own policy forbids them."""
    text = page_of(events, tmp_path / "r")
    page = Page(text)

    assert {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "a",
    } == set()
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert attributes & {"src", "href", "srcset", "xlink:href", "action"} == set()
    assert "url(" not in text
    assert "@import" not in text
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in page.tags


def test_keys_are_text(events: str, tmp_path: Path) -> None:
    """Names that are markup are shown as they are, and what turns the writing is spelled out."""
    mapping = redacted(SETTINGS)
    mapping["kafka"]["group_id"] = _SCRIPT
    page = Page(page_of(events, tmp_path / "r", parse(mapping)))

    assert page.count("script") == page.count("img") == 0
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.texts.count(_SCRIPT) >= 2  # the key, and the pipeline in the title
    assert _IMAGE.replace("\u202e", "\\u202e") in page.texts


@given(text=st.text())
def test_shown_text_is_harmless(text: str) -> None:
    """No markup, nothing unprintable; short printable text is shown as it is."""
    html = shown(text)

    assert not set(html) & set("<>\"'")
    assert unescape(html).isprintable()
    if text.isprintable() and len(text) < 60:
        assert unescape(html) == text


def test_the_tables_hold_the_scores(events: str, tmp_path: Path) -> None:
    """Every forecaster at every resolution and horizon, with the numbers of --json."""
    scored = json.loads(run(events, tmp_path / "r", as_json=True))
    page = Page((tmp_path / "r" / "index.html").read_text())

    def has(name: str, values: list[float]) -> bool:
        numbers = (
            [float(cell.replace(",", "")) for cell in row[1:]]
            for row in page.rows
            if row[0] == name
        )
        return any(row == pytest.approx(values, rel=1e-3) for row in numbers)

    for resolution in scored["resolutions"]:
        horizons = resolution["horizons"]
        for name in horizons[0]["forecasters"]:
            if name == POOL or not horizons[0]["forecasters"][name]["spoke"]:
                continue  # without a network it is what is published
            for measure in ("mae", "mse", "mase", "wape"):
                values = [h["forecasters"][name][measure] for h in horizons]
                row = "pool" if name == PUBLISHED else labels.label(name)
                assert has(row, values), (name, measure)
        assert has("pool", [h["wql"] for h in horizons])
    assert scored["report"] == str(tmp_path / "r" / "index.html")


def test_every_resolution_has_its_plots(events: str, tmp_path: Path) -> None:
    """Six keys over the truth; skill, reliability and weights."""
    page = Page(page_of(events, tmp_path / "r"))
    plots = Counter(
        attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" if "role" in attrs
    )

    for step in ("1 minute", "5 minutes", "1 hour"):
        assert plots[f"Forecasts and truth by {step}"] == 6
    for label in (
        "Skill by horizon",
        "Share of truths below each quantile",
        "Expert weights in the course of the run",
    ):
        assert plots[label] == 3


def test_the_page_is_a_function_of_the_log(events: str, tmp_path: Path) -> None:
    """The same bytes twice, and over partitions too; nothing is left beside it."""
    for partitions in (1, 3):
        pages = [page_of(events, tmp_path / f"{i}", partitions=partitions) for i in (1, 2)]

        assert pages[0] == pages[1]
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["index.html"]


def test_looking_on_changes_nothing(events: str, tmp_path: Path) -> None:
    """The forecasts are the same bytes with a report and without."""
    run(events, None, forecasts=str(tmp_path / "without"))
    run(events, tmp_path / "r", forecasts=str(tmp_path / "with"))

    assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()


@pytest.mark.parametrize("size", [0, 3])
def test_a_log_too_short_to_score_says_so(tmp_path: Path, size: int) -> None:
    """Where nothing has come due there is no table and no plot of scores."""
    text = page_of(write_events(tmp_path / "e.jsonl", size), tmp_path / "r")

    assert "No forecast has come due" in text
    assert Page(text).count("table") == 0
    assert "Skill by horizon" not in [attrs.get("aria-label") for _, attrs in Page(text).tags]


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    """Before anything is read."""
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=r"file/index\.html: cannot be written"):
        run("/no/such/events.jsonl", tmp_path / "file")


def test_a_page_that_cannot_be_replaced_is_told(events: str, tmp_path: Path) -> None:
    """A folder of its name is in the way."""
    (tmp_path / "r" / "index.html").mkdir(parents=True)

    with pytest.raises(ConfigError, match=r"index\.html: cannot be written"):
        run(events, tmp_path / "r")


def test_a_pass_that_fails_leaves_an_old_page_alone(events: str, tmp_path: Path) -> None:
    """And nothing else in its folder."""
    before = page_of(events, tmp_path / "r")

    with pytest.raises(ConfigError, match="no such events file"):
        run("/no/such/events.jsonl", tmp_path / "r")

    assert [path.name for path in (tmp_path / "r").iterdir()] == ["index.html"]
    assert (tmp_path / "r" / "index.html").read_text("utf-8") == before


def test_the_command_names_the_page(
    events: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`backtest --report DIR` makes the folder and says where the page lies."""
    folder = tmp_path / "new" / "folder"
    with pytest.raises(SystemExit) as ended:
        cli.main(["backtest", "--events", events, "--report", str(folder)])

    assert ended.value.code == 0
    assert str(folder / "index.html") in capsys.readouterr().out.replace("\n", "")
    assert (folder / "index.html").stat().st_size > 1_000


# -- what is gathered ------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 3])
def test_truths_are_the_counts(events: str, partitions: int) -> None:
    """Each bucket of a key shown has as many events as the file."""
    watching = watch(events, partitions)
    logged = [json.loads(line) for line in Path(events).read_text().splitlines()]
    portraits = list(watching._portraits())

    assert len(portraits) == 6
    for portrait in portraits:
        for series in portrait.series:
            times = [e["ts"] for e in logged if e["user_id"].encode() == portrait.key]
            counts = Counter(ts // series.step_ms for ts in times)
            seen = {i: v for i, v in series.truth.items() if i >= min(counts)}
            assert seen == {i: counts[i] for i in seen}
            assert list(seen) == list(range(min(seen), max(seen) + 1))
            assert len(seen) >= 2


def test_fans_are_published_forecasts_one_after_another(events: str) -> None:
    """Four of each key and resolution at most, none picked, none over another."""
    watching = watch(events)
    blocks = read_events([events], SETTINGS.input, partitions=1)
    forecasts = [f for turn in passes.Pass(SETTINGS).turns(blocks) for f in turn.forecasts]

    for portrait in watching._portraits():
        for i, series in enumerate(portrait.series):
            said = {}
            for forecast in reversed(forecasts):
                if portrait.key in forecast.keys:
                    paths, row = forecast.paths[i], forecast.keys.index(portrait.key)
                    said[paths.start_ms // paths.step_ms] = paths.mean[row]
            assert 1 <= len(series.fans) <= 4
            for fan in series.fans:
                np.testing.assert_array_equal(fan.mean, said[fan.first])
            firsts = [fan.first for fan in series.fans]
            assert firsts == list(range(firsts[0], firsts[-1] + 1, series.horizon))


def test_the_busiest_and_others_are_shown(tmp_path: Path) -> None:
    """The three with most events, the busiest first; three of the rest."""
    rng = np.random.default_rng(0)
    users = [f"u{i:02}" for i in range(20)]
    times = streams.START_MS + np.sort(rng.integers(0, 90 * streams.MINUTE_MS, 1_500))
    drawn = rng.choice(users, 1_500, p=(p := np.arange(1, 21) ** 2.0) / p.sum())
    path = tmp_path / "e.jsonl"
    path.write_bytes(
        b"".join(streams.event(u, int(ts)) + b"\n" for u, ts in zip(drawn, times, strict=True))
    )
    watching = watch(str(path), partitions=2)

    keys = [portrait.key.decode() for portrait in watching._portraits()]

    most = [user for user, _ in Counter(drawn.tolist()).most_common()]
    assert keys[:3] == most[:3]
    assert len(set(keys)) == 6
    assert set(keys[3:]) & set(most[6:])


def test_a_long_run_is_looked_at_at_regular_points(tmp_path: Path) -> None:
    """At most 200 times, equally far apart, up to the end."""
    events = write_events(tmp_path / "e.jsonl", 2_000)
    watching = watch(events)

    hops = np.array([look.time_ms for look in watching._looks]) // streams.MINUTE_MS
    last_ms = json.loads(Path(events).read_text().splitlines()[-1])["ts"]
    assert 100 <= len(hops) <= 200
    assert np.ptp(np.diff(hops)) <= 10
    assert hops[0] - streams.START_MS // streams.MINUTE_MS < 10
    assert last_ms // streams.MINUTE_MS - hops[-1] < 10
    for look in watching._looks:
        for weights in look.weights:
            assert weights.sum() == pytest.approx(1)


# -- plots -----------------------------------------------------------------------------------------


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6))
def test_ticks_are_few_and_within(low: float, span: float) -> None:
    """One at least, five at most, ascending, as far apart as each other."""
    found = ticks(low, low + span)

    assert 1 <= len(found) <= 5
    assert found == sorted(set(found))
    slack = 1e-6 * span + 1e-9 * abs(low)
    assert low - slack <= found[0]
    assert found[-1] <= low + span + slack


@given(
    zone=st.sampled_from(["UTC", "Europe/Zurich", "Asia/Kolkata", "America/New_York"]),
    low_ms=st.integers(DAY_MS, LATEST_MS // 2),
    span_ms=st.integers(5 * streams.MINUTE_MS, 3_000 * DAY_MS),
)
def test_time_ticks_are_round_on_the_wall(zone: str, low_ms: int, span_ms: int) -> None:
    """Few, and at minutes, hours or midnights of the local clock, to within its changes."""
    calendar = Calendar(zone)

    found = time_ticks(calendar, low_ms, low_ms + span_ms)

    assert len(found) <= 5
    for at_ms, label in found:
        assert -DAY_MS / 24 <= at_ms - low_ms <= span_ms + DAY_MS / 24
        local_ms = int(calendar.local(int(at_ms)))
        assert local_ms % streams.MINUTE_MS == 0
        if span_ms > 40 * DAY_MS:
            assert ":" not in label


def test_a_plot_escapes_what_it_says() -> None:
    """Label, ticks and titles."""
    plot = Plot(_IMAGE, (0, 1), (0, 1))
    plot.x_ticks([(0.5, _SCRIPT)])
    plot.line([0, 1], [0, 1], "c0", _SCRIPT)
    plot.bar(0.5, 0.2, 0.3, _SCRIPT)

    page = Page(str(plot))

    assert page.count("script") == page.count("img") == 0
    assert page.texts.count(_SCRIPT) == 3


def test_a_gap_interrupts_a_line() -> None:
    """Two pieces around a NaN, the second a lone point that is drawn all the same."""
    plot = Plot("", (0, 3), (0, 1))
    plot.line([0, 1, 2, 3], [0, 1, np.nan, 1], "truth")

    lines = [attrs["points"] or "" for tag, attrs in Page(str(plot)).tags if tag == "polyline"]

    assert [len(points.split()) for points in lines] == [2, 2]
    assert len(set(lines[1].split())) == 1


def test_old_truths_are_forgotten() -> None:
    """What lies more than a horizon before the oldest forecast that is kept."""
    series = Series(60_000, horizon=2)
    for now in range(100):
        series.add_fan(Fan(now, np.zeros(2), np.zeros((2, 3))))
        series.add_truth(now - 5, np.arange(now - 5.0, now))

    firsts = [fan.first for fan in series.fans]
    assert firsts == [92, 94, 96, 98]
    assert series.truth == {i: float(i) for i in range(90, 99)}
