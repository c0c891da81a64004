import io
import json
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import streams
import structlog
from prometheus_client import CollectorRegistry
from rich.console import Console

from stream_forecaster import backtest, passes
from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings, parse, redacted
from stream_forecaster.edge.files import read_events
from stream_forecaster.edge.memory import MemoryLog, MemoryRecord, MemoryStore, MemoryTransport
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.world import World
from stream_forecaster.errors import ConfigError
from stream_forecaster.forecasts import Encoder
from stream_forecaster.scoring import POOL, PUBLISHED
from stream_forecaster.service import Service
from stream_forecaster.shard import Shard

SETTINGS = streams.settings()
_KEPT = 1e-3
"""What a forecaster said is kept in 11 bits until it lands, so its score is not exact."""
USERS = ("ann", "bob", "cyd", "dan", "eve", "fay")
_EVERYONE = [streams.event(user, streams.START_MS) for user in USERS]
# All six come in the first minute, so that none of them is ever a newcomer among the others.
BUSY = [*_EVERYONE, *(value for _, value, _ in streams.busy_log(594))]


def write(path: Path, lines: Iterable[bytes | None]) -> str:
    path.write_bytes(b"".join((line or b"") + b"\n" for line in lines))
    return str(path)


@pytest.fixture
def events(tmp_path: Path) -> str:
    """A file of 600 events of six users over two and a half hours."""
    return write(tmp_path / "events.jsonl", BUSY)


def rows_of(events: str) -> list[streams.Row]:
    """The file as a log: broker times a little after the events'."""
    values = Path(events).read_bytes().splitlines()
    return [(None, value, json.loads(value)["ts"] + 20) for value in values]


def run_backtest(events: str, settings: Settings = SETTINGS, **options: Any) -> str:
    """What a backtest prints; it succeeds."""
    out = io.StringIO()
    console = Console(file=out, width=100)
    assert backtest.backtest(settings, [events], console=console, **options) == 0
    return out.getvalue()


def report(events: str, settings: Settings = SETTINGS, **options: Any) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(run_backtest(events, settings, as_json=True, **options))
    return parsed


def record(events: str, path: Path, settings: Settings = SETTINGS, **options: Any) -> list[bytes]:
    """Record a backtest's forecasts in `path`; its lines."""
    run_backtest(events, settings, forecasts=str(path), **options)
    return path.read_bytes().splitlines()


def run_replay(
    events: str, recording: str, settings: Settings = SETTINGS, **options: Any
) -> tuple[int, str]:
    """A verifying replay's exit code and what it prints."""
    out = io.StringIO()
    console = Console(file=out, width=100)
    code = backtest.replay(settings, [events], verify=recording, console=console, **options)
    return code, out.getvalue()


class SlowScores:
    """The naive rows of one resolution, one record, key and bucket at a time."""

    def __init__(self, settings: Settings, resolution: int, horizons: Sequence[int]) -> None:
        self.horizons = horizons
        self.step_ms = settings.resolutions[resolution].step_ms
        self.lateness_ms = settings.input.allowed_lateness_ms
        self.context = settings.resolutions[resolution].context
        self.errors: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.truths: dict[int, list[float]] = defaultdict(list)
        self._counts: dict[str, dict[int, int]] = {}
        self._window: dict[str, deque[int]] = {}
        self._said: dict[tuple[str, int], tuple[float, float]] = {}

    def run(self, values: Iterable[bytes | None]) -> None:
        """Take in a log whose times ascend."""
        closed = None
        for value in values:
            event = json.loads(value or b"")
            time_ms, key = event["ts"], event["user_id"]
            until = (time_ms - self.lateness_ms) // self.step_ms
            for bucket in range(until if closed is None else closed, until):
                self._close(bucket)
            closed = until
            counts = self._counts.setdefault(key, defaultdict(int))
            counts[time_ms // self.step_ms] += 1
            self._window.setdefault(key, deque(maxlen=self.context))

    def _close(self, bucket: int) -> None:
        for key, counts in self._counts.items():
            if min(counts) <= bucket:
                truth = counts.get(bucket, 0)
                self._score(key, bucket, truth)
                self._window[key].append(truth)
            window = self._window[key]
            # Before anyone's first bucket has closed, nothing is known, and nothing is forecast.
            self._said[key, bucket] = (window[-1], fmean(window)) if window else (0.0, 0.0)

    def _score(self, key: str, bucket: int, truth: float) -> None:
        for horizon in self.horizons:
            if (key, bucket - horizon) in self._said:
                self.truths[horizon].append(truth)
                last_value, moving_average = self._said[key, bucket - horizon]
                self.errors["last_value", horizon].append(truth - last_value)
                self.errors["moving_average", horizon].append(truth - moving_average)


@pytest.mark.parametrize("resolution", [0, 1])
def test_naive_rows_equal_a_slow_scoring(events: str, resolution: int) -> None:
    """Count, MAE, MSE and WAPE of the naive rows are what dictionaries give, bucket by bucket."""
    scored = report(events)["resolutions"][resolution]["horizons"]
    slow = SlowScores(SETTINGS, resolution, [row["horizon"] for row in scored])

    slow.run(BUSY)

    for row in scored:
        truths = slow.truths[row["horizon"]]
        assert row["landed"] == len(truths) > 50
        for name in ("last_value", "moving_average"):
            errors = slow.errors[name, row["horizon"]]
            total = sum(abs(error) for error in errors)
            assert row["forecasters"][name]["mae"] == pytest.approx(total / len(truths), rel=_KEPT)
            squares = sum(error**2 for error in errors)
            assert row["forecasters"][name]["mse"] == pytest.approx(
                squares / len(truths), rel=_KEPT
            )
            assert row["forecasters"][name]["wape"] == pytest.approx(total / sum(truths), rel=_KEPT)


def test_scores_and_counts_add_up_over_blocks(events: str) -> None:
    """Reading in blocks of 50 gives the sums that one block gives."""
    whole, pieces = passes.Pass(SETTINGS), passes.Pass(SETTINGS)

    for past, block_records in ((whole, 1_000), (pieces, 50)):
        turns = list(past.turns(read_events([events], SETTINGS.input, block_records=block_records)))
        assert len(turns) == -(-len(BUSY) // block_records)

    assert pieces.counts() == whole.counts()
    for a, b in zip(pieces.scores, whole.scores, strict=True):
        np.testing.assert_array_equal(a.count, b.count)
        np.testing.assert_allclose(a.absolute, b.absolute)
        np.testing.assert_allclose(a.pinball, b.pinball)


def test_the_row_of_the_pool_is_that_of_a_run_without_the_network(events: str) -> None:
    """Beside a network that does move the published forecast."""
    with_it, without = (passes.Pass(streams.settings(network=n)) for n in (True, False))
    for past in (with_it, without):
        drifts = sum(sum(turn.drifts) for turn in past.turns(read_events([events], SETTINGS.input)))
        assert not drifts  # which part of what was learned is forgotten depends on what was said

    for one, other in zip(with_it.scores, without.scores, strict=True):
        np.testing.assert_allclose(one.mae(POOL), other.mae(POOL), rtol=_KEPT)
        np.testing.assert_allclose(one.mse(POOL), other.mse(POOL), rtol=_KEPT)
    assert (with_it.scores[0].mae(POOL) != with_it.scores[0].mae(PUBLISHED)).all()


def test_every_record_is_counted_or_rejected(tmp_path: Path) -> None:
    """Events and rejects by reason add up to the lines of the file."""
    bad = [b"{", b'{"ts": 1767312000000}', streams.event("ann", streams.START_MS - 9_999_999)]
    path = write(tmp_path / "e.jsonl", [*BUSY[:300], *bad, *BUSY[300:]])

    counted = report(path)

    assert counted["rejects"] == {"no_key": 1, "not_json": 1, "too_late": 1}
    assert counted["events"] == 600
    assert counted["keys"] == 6


def test_table_names_the_naive_rows_and_what_the_columns_mean(events: str) -> None:
    """A newcomer finds the simple forecasters beside the published one, and a legend."""
    text = run_backtest(events)

    for words in ("last value", "MA(3)", "EWMA, fast", "pool"):
        assert f"\n   {words}  " in text, words
    assert "moving average" not in text
    assert "moving average" in run_backtest(events, experts=True)
    assert "how far off" in text
    assert "1 minute: skill" in text
    assert "600 events counted, 0 rejected" in text


def test_a_comparison_publishes_what_is_set(tmp_path: Path) -> None:
    """The forecasts and the scores are those of a run without one; the variants stand beside."""
    settings = streams.settings(network=True)
    events = write(tmp_path / "e.jsonl", BUSY[:200])
    alone = report(events, settings, forecasts=str(tmp_path / "alone"))
    beside = report(events, settings, forecasts=str(tmp_path / "beside"), compare=True)

    assert (tmp_path / "beside").read_bytes() == (tmp_path / "alone").read_bytes()
    assert beside["resolutions"] == alone["resolutions"]
    assert "variants" not in alone
    as_set, *others = beside["variants"]
    assert as_set["names"] == ["as set", "full profile", "both"]
    assert as_set["resolutions"] == alone["resolutions"]
    assert len(others) == 4
    for other in others:
        assert other["seconds"] > 0
        assert other["resolutions"] != alone["resolutions"]


def test_a_comparison_is_printed_below(tmp_path: Path) -> None:
    """After the table of what is set; without a network three variants are left to it."""
    text = run_backtest(write(tmp_path / "e.jsonl", BUSY[:100]), compare=True)

    _, table = text.split("Variants side by side")
    for name in ("as set, full profile, pool alone", "lean profile", "zero-shot", "both"):
        assert f"\n   {name}  " in table, name


def test_a_log_too_short_to_score_says_so(tmp_path: Path) -> None:
    """Where nothing has come due there is no table of nothing."""
    path = write(tmp_path / "e.jsonl", BUSY[:3])

    assert "No forecast has come due" in run_backtest(path)


def test_no_number_is_not_json(tmp_path: Path) -> None:
    """What cannot be said yet is null; NaN would not parse elsewhere."""
    path = write(tmp_path / "e.jsonl", BUSY[:40])

    text = run_backtest(path, as_json=True)

    assert "null" in text
    json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_a_recording_is_reproduced(events: str, tmp_path: Path, name: str, partitions: int) -> None:
    """The same events give the same bytes, however the recording is stored."""
    record(events, tmp_path / name, partitions=partitions)

    code, text = run_replay(events, str(tmp_path / name), partitions=partitions)

    assert code == 0
    assert "exactly the recorded forecasts" in text


def test_partitions_are_separate_logs(events: str, tmp_path: Path) -> None:
    """Four partitions give what four shards give that know nothing of each other."""
    lines = record(events, tmp_path / "f.jsonl", partitions=4)
    logs = {
        block.partition: block
        for block in read_events([events], SETTINGS.input, partitions=4, block_records=10_000)
    }
    encoder = Encoder(SETTINGS)

    separate = [
        message.value or b""
        for partition, log in logs.items()
        for forecast in Shard(SETTINGS, Calendar("UTC"), partition, 0).advance(log).forecasts
        for message in encoder.forecast(forecast)
    ]

    assert len(logs) > 1
    assert sorted(lines) == sorted(separate)


def test_what_run_publishes_is_what_a_replay_verifies(events: str, tmp_path: Path) -> None:
    """The service, polling as it likes over its own transport, gives the bytes a file gives."""
    log = MemoryLog({0: [MemoryRecord(*row) for row in rows_of(events)]})
    sizes = cycle([7, 60, 1, 200])
    world = World(
        MemoryTransport(log, lambda: next(sizes)),
        MemoryStore(log),
        Telemetry(CollectorRegistry()),
        structlog.wrap_logger(
            structlog.ReturnLogger(), wrapper_class=structlog.make_filtering_bound_logger(50)
        ),
    )
    Service(SETTINGS, world).run(stopping=lambda: log.drained)
    recording = write(tmp_path / "topic.jsonl", (m.value for m in log.published))

    code, text = run_replay(events, recording, as_json=True)

    assert code == 0
    assert json.loads(text)["verify"]["equal"] == len(log.published) > 500


def test_publication_order_is_kept(events: str, tmp_path: Path) -> None:
    """Forecasts are written hop by hop."""
    lines = record(events, tmp_path / "f.jsonl")

    issued = [json.loads(line)["issued_at"] for line in lines]

    assert issued == sorted(issued)
    assert len(set(issued)) > 100


def test_a_changed_event_is_named(events: str, tmp_path: Path) -> None:
    """One event more of one user: exit 1, with the key, the hop and the field that differ first."""
    record(events, tmp_path / "f.jsonl")
    at = 300
    more = write(tmp_path / "more.jsonl", [*BUSY[:at], BUSY[at - 1], *BUSY[at:]])

    code, text = run_replay(more, str(tmp_path / "f.jsonl"), as_json=True)

    verify = json.loads(text)["verify"]
    first = verify["first_difference"]
    assert code == 1
    assert verify["different"] > 0
    assert first["kind"] == "different"
    assert first["path"].startswith(("source.offset", "resolutions[0]"))
    assert first["recorded"] != first["replayed"]


def test_a_part_of_a_recording_is_verified_over_its_span(events: str, tmp_path: Path) -> None:
    """What was published before the recording began and after it ended is not missed."""
    lines = record(events, tmp_path / "f.jsonl")
    offsets = sorted({json.loads(line)["source"]["offset"] for line in lines})
    first, last = offsets[40], offsets[70]
    part = [line for line in lines if first <= json.loads(line)["source"]["offset"] <= last]
    path = write(tmp_path / "part.jsonl", reversed(part))

    code, text = run_replay(events, path, as_json=True)

    assert code == 0
    assert json.loads(text)["verify"]["equal"] == len(part)


def test_a_loss_in_the_middle_is_missed(events: str, tmp_path: Path) -> None:
    """A forecast that the log gives and the recording lacks is missing."""
    lines = record(events, tmp_path / "f.jsonl")
    path = write(tmp_path / "lossy.jsonl", [*lines[:200], *lines[201:]])

    code, text = run_replay(events, path)

    lost = json.loads(lines[200])
    assert code == 1
    assert f"missing, key '{lost['key']}', issued at {lost['issued_at']}" in text
    assert "cut in the middle" not in text


def test_a_recording_cut_within_a_hop_is_pointed_out(events: str, tmp_path: Path) -> None:
    """Its other half is missing at the end, and the report says what that may mean."""
    lines = record(events, tmp_path / "f.jsonl")
    last = json.loads(lines[200])["source"]["offset"]
    end = max(i for i, line in enumerate(lines) if json.loads(line)["source"]["offset"] == last)
    path = write(tmp_path / "cut.jsonl", lines[:end])

    code, text = run_replay(events, path)

    assert code == 1
    assert "cut in the middle" in text


def test_an_invented_forecast_is_unexpected(events: str, tmp_path: Path) -> None:
    """A recorded id that the log does not give, among those that it does."""
    lines = record(events, tmp_path / "f.jsonl")
    invented = lines[100].replace(b'"id":"', b'"id":"x')
    path = write(tmp_path / "f.jsonl", [*lines, invented])

    code, text = run_replay(events, path, as_json=True)

    verify = json.loads(text)["verify"]
    assert code == 1
    assert (verify["unexpected"], verify["missing"], verify["different"]) == (1, 0, 0)
    assert verify["first_difference"]["kind"] == "unexpected"


def test_repetitions_are_fine_and_contradictions_are_not(events: str, tmp_path: Path) -> None:
    """At-least-once may record a forecast twice, but not two of one id."""
    lines = record(events, tmp_path / "f.jsonl")
    twice = write(tmp_path / "twice.jsonl", [*lines, *lines[50:60]])
    other = lines[50].replace(b'"observations":', b'"observations":9')
    contradictory = write(tmp_path / "contradictory.jsonl", [*lines, other])

    assert run_replay(events, twice)[0] == 0
    code, text = run_replay(events, contradictory)

    assert code == 1
    assert "quality.observations" in text


def test_other_bytes_of_the_same_content_are_different(events: str, tmp_path: Path) -> None:
    """A recording that was parsed and written anew is no proof, and the report says why."""
    lines = record(events, tmp_path / "f.jsonl")
    path = write(tmp_path / "spaced.jsonl", (json.dumps(json.loads(x)).encode() for x in lines))

    code, text = run_replay(events, path)

    assert code == 1
    assert "written anew" in text


def test_a_recording_of_other_settings_is_recognised(events: str, tmp_path: Path) -> None:
    """No id in common: the settings are to blame, and the report names them."""
    mapping = redacted(SETTINGS)
    mapping["kafka"]["group_id"] = "another"
    record(events, tmp_path / "f.jsonl", parse(mapping))

    code, text = run_replay(events, str(tmp_path / "f.jsonl"))

    assert code == 1
    assert "kafka.group_id" in text


def test_what_is_read_is_not_overwritten(events: str, tmp_path: Path) -> None:
    """Neither the events nor the recording can be named as output by mistake."""
    recording = tmp_path / "f.jsonl"
    lines = record(events, recording)

    with pytest.raises(ConfigError, match="would be overwritten"):
        run_backtest(events, forecasts=events)
    with pytest.raises(ConfigError, match="would be overwritten"):
        run_replay(events, str(recording), forecasts=str(recording))

    assert Path(events).read_bytes().splitlines() == BUSY
    assert recording.read_bytes().splitlines() == lines


@pytest.mark.parametrize("line", [b"{", b'{"id": "x"}', b"[]", b""])
def test_what_is_no_recording_is_refused(events: str, tmp_path: Path, line: bytes) -> None:
    """The file and the line are named."""
    lines = record(events, tmp_path / "f.jsonl")
    path = write(tmp_path / "f.jsonl", [*lines[:2], line])

    with pytest.raises(ConfigError, match=r"f\.jsonl, line 3"):
        run_replay(events, path)


def test_a_missing_recording_is_said_to_be_missing(events: str, tmp_path: Path) -> None:
    """In words, before anything is replayed; a folder is none either."""
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ConfigError, match=f"^{path}: no such recording"):
            run_replay(events, str(path))


@pytest.mark.parametrize(
    ("lines", "said"),
    [([], "No record was found"), ([b'{"user": "ann"}', b"{"], "No record is an event")],
    ids=["empty", "rejected"],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_backtest_of_nothing_is_no_success(
    tmp_path: Path, lines: list[bytes], said: str, *, as_json: bool
) -> None:
    """It says so, and exits 1."""
    path, out = write(tmp_path / "none.jsonl", lines), io.StringIO()
    console = Console(file=out, width=100)

    assert backtest.backtest(SETTINGS, [path], as_json=as_json, console=console) == 1
    assert (json.loads(out.getvalue())["events"] == 0) if as_json else (said in out.getvalue())


def test_progress_keeps_out_of_standard_output(
    events: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--json | jq` works: one object and nothing else."""
    backtest.backtest(SETTINGS, [events], as_json=True, console=Console())

    assert json.loads(capsys.readouterr().out)["events"] == 600
