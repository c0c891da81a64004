"""The command line: builds the parts from the settings, and prints.

    run · demo                                  the service; the whole line on this machine
    check · topics · simulate · tail · lag      beside a running service
    dlq · forget                                records to send again, keys to erase
    replay · backtest                           events from files
    fit · pretrain · weights                    the weights that the network starts from
    plan · state · config · schema · version    to look things up

Data goes to stdout, all else to stderr. Exit codes: 0 done, 1 a check or a comparison failed,
2 wrong usage or settings, 3 the broker is away or refuses, 4 the state cannot be used or does not
fit into memory, 70 a bug.
"""

import gc
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from threading import Event
from typing import Annotated, Literal

import structlog
import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from structlog.typing import FilteringBoundLogger

from stream_forecaster import __version__, asyncapi, plan
from stream_forecaster.config import Log, Settings
from stream_forecaster.edge import console, logs, topics
from stream_forecaster.edge.compiling import compile_on_all_cores
from stream_forecaster.edge.http import Health, HttpServer, stalled_after_s
from stream_forecaster.edge.kafka import KafkaTransport
from stream_forecaster.edge.lag import lag as read_lag
from stream_forecaster.edge.options import (
    AsJson,
    EventFiles,
    ForecastFile,
    MoreEventFiles,
    Partitions,
    ReportFolder,
    WeightsOut,
    count,
    examples,
    with_settings,
)
from stream_forecaster.edge.signals import stop_on_signals
from stream_forecaster.edge.simulator import Simulation, simulate
from stream_forecaster.edge.store import CheckpointStore
from stream_forecaster.edge.subcommands import (
    config_app,
    dlq_app,
    state_app,
    topics_app,
    weights_app,
)
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.viewers import Viewers
from stream_forecaster.edge.weights_file import read_weights
from stream_forecaster.edge.world import World
from stream_forecaster.errors import StoreUnusable, StreamForecasterError, Unavailable
from stream_forecaster.service import Service
from stream_forecaster.shard import load_parts
from stream_forecaster.weights import shipped

OK, GATE_FAILED, BROKER_AWAY, BAD_STATE, BUG = 0, 1, 3, 4, 70

_OUT_OF_MEMORY = (
    "out of memory: give the process more, or fewer keys: more processes, a smaller "
    'state.max_keys, model.profile = "lean"; `stream-forecaster plan --keys N` says what they take'
)

app = typer.Typer(
    help="Calibrated forecasts for every key of a Kafka topic, exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(topics_app, name="topics")
app.add_typer(state_app, name="state")
app.add_typer(dlq_app, name="dlq")
app.add_typer(weights_app, name="weights")
app.add_typer(config_app, name="config")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    Args:
        arguments: those of the process by default.
    """
    try:
        app(args=arguments, prog_name="stream-forecaster")
    except StreamForecasterError as error:
        # Names that the system hands over need not be text.
        typer.echo(f"error: {error}".encode(errors="backslashreplace").decode(), err=True)
        sys.exit(error.exit_code)
    except MemoryError as error:
        typer.echo(f"error: {_OUT_OF_MEMORY} ({error})", err=True)
        sys.exit(BAD_STATE)
    except Exception:  # noqa: BLE001  (the outermost one: whatever it is, it is a bug of ours)
        traceback.print_exc()
        sys.exit(BUG)


# -- the service -----------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "run --config forecaster.toml",
        "run --bootstrap-servers kafka:9092 --set input.topic=clicks",
    )
)
@with_settings
def run(
    settings: Settings,
    *,
    cold_start: Annotated[
        bool,
        typer.Option("--cold-start", help="Where state cannot be recovered, begin without it."),
    ] = False,
) -> int:
    """Read events, publish forecasts, until SIGTERM or SIGINT; a second signal ends it at once."""
    logs.configure(settings.log, sys.stderr)
    log = structlog.get_logger("stream_forecaster")
    with stop_on_signals() as stopping:
        try:
            _serve(settings, log, stopping, cold_start=cold_start)
        except Unavailable as error:
            if not stopping.is_set():
                return _failed(log, error)
            # Told to stop while the broker was away: what is not committed will be read again.
            log.warning("stopped_uncommitted", reason=str(error))
        except StreamForecasterError as error:
            return _failed(log, error)
        except MemoryError:
            # What was not committed is read again by the next process; nothing is committed half.
            log.exception("out_of_memory", reason=_OUT_OF_MEMORY, exit_code=BAD_STATE)
            return BAD_STATE
        except Exception:
            log.exception("crashed", exit_code=BUG)
            return BUG
    log.info("stopped")
    return OK


def _serve(
    settings: Settings, log: FilteringBoundLogger, stopping: Event, *, cold_start: bool
) -> None:
    gc.freeze()  # what is imported stays: to search it for garbage takes a tenth of the start
    telemetry = Telemetry()
    telemetry.build_info(
        version=__version__, pipeline=settings.kafka.group_id, config_id=settings.config_id
    )
    viewers = Viewers()
    patience_s = stalled_after_s(settings.kafka)
    with closing(
        HttpServer(settings.http, telemetry.exposition, viewers, stalled_after_s=patience_s)
    ) as server:
        store = CheckpointStore(settings.state.checkpoint_url, settings.kafka.group_id)
        store.probe()
        log.info(
            "started",
            version=__version__,
            config_id=settings.config_id,
            http_port=server.port,
            group_id=settings.kafka.group_id,
            topics=topics.topic_names(settings),
        )

        def observe(health: Health) -> None:
            server.health = health

        def alive() -> None:
            server.health = replace(server.health, heartbeat_s=time.monotonic())

        # First, for a refusal is to be told at once. The group is joined by the first poll only.
        with (
            closing(KafkaTransport(settings, log, stopping, alive=alive)) as transport,
            ThreadPoolExecutor(1) as beside,
        ):
            # Here, for a member of the group should not take that long.
            compile_on_all_cores(
                lambda: log.info("compiling", hint="once: the first start takes a minute")
            )
            weights = None
            if settings.model.network:
                weights = read_weights(settings.model.weights) or shipped()
            # Beside the loop, which begins by waiting until the group has let it in.
            loading = beside.submit(load_parts, settings)
            world = World(
                transport,
                store,
                telemetry,
                log,
                weights=weights,
                loaded=loading.result,
                viewers=viewers,
            )
            Service(settings, world, cold_start=cold_start).run(stopping.is_set, observe)


def _failed(log: FilteringBoundLogger, error: StreamForecasterError) -> int:
    log.error("failed", error=type(error).__name__, reason=str(error), exit_code=error.exit_code)
    return error.exit_code


@app.command(
    name="demo", epilog=examples("demo", "demo --seconds 30 --no-browser  # and what was counted")
)
def show_demo(
    *,
    seconds: Annotated[float | None, typer.Option(min=0, help="End after so long.")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
) -> None:
    """A broker, simulated users and the real service on this machine, live on a page."""
    from stream_forecaster import demo  # noqa: PLC0415  (a tenth of a second, which no other needs)

    logs.configure(Log(level="warning"), sys.stderr)  # the screen is the board's
    raise typer.Exit(demo.demo(seconds=seconds, browser=browser))


# -- beside a running service ----------------------------------------------------------------------


@app.command(
    epilog=examples("check --config forecaster.toml", "check --config forecaster.toml --json")
)
@with_settings
def check(settings: Settings, *, as_json: AsJson = False) -> int:
    """Look at everything `run` will need: broker, topics, group, checkpoint store."""
    load_parts(settings)  # which refuses what only river and torch can tell
    probes = [
        topics.Probe("settings", passed=True, detail=f"valid; config_id {settings.config_id}"),
        *topics.probe(settings),
        _probe_store(settings),
    ]
    if as_json:
        rows = [{"name": p.name, "passed": p.passed, "detail": p.detail} for p in probes]
        console.print_json(Console(), rows)
    else:
        Console().print(console.probe_table(probes))
    failed = {probe.name for probe in probes if not probe.passed}
    return BROKER_AWAY if "broker" in failed else GATE_FAILED if failed else OK


def _probe_store(settings: Settings) -> topics.Probe:
    url = settings.state.checkpoint_url
    try:
        CheckpointStore(url, settings.kafka.group_id).probe()
    except StoreUnusable as error:
        return topics.Probe("checkpoint store", passed=False, detail=str(error))
    return topics.Probe("checkpoint store", passed=True, detail=f"{url} takes what is written")


@app.command(
    name="simulate",
    epilog=examples(
        "simulate --config forecaster.toml --rate 200 --users 500",
        "simulate --config forecaster.toml --speed 60 --seconds 60  # an hour of their lives",
    ),
)
@with_settings
def send_simulated(
    settings: Settings,
    *,
    rate: Annotated[float, typer.Option(min=0.001, help="Events a second.")] = 50.0,
    users: Annotated[int, typer.Option(min=1, help="How many there are.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn by lot.")] = 0,
    seconds: Annotated[float | None, typer.Option(min=0, help="End after so long.")] = None,
    speed: Annotated[
        float, typer.Option(min=1, help="How fast the users live, beginning earlier.")
    ] = 1.0,
) -> int:
    """Send what simulated users do to the input topic, as it comes."""
    topics.require_input(settings)
    simulation = Simulation(users, rate, seed, seconds, speed)
    out, total = Console(stderr=True), 0
    with out.status("Sending ...") as status, stop_on_signals() as stopping:

        def sent(events: int) -> None:
            nonlocal total
            total += events
            status.update(f"{total:,} events sent to {escape(settings.input.topic)}")

        simulate(settings, simulation, stopping, sent)
    out.print(f"{total:,} events sent to {settings.input.topic}", markup=False)
    return OK


@app.command(
    epilog=examples(
        "tail --config forecaster.toml",
        "tail --config forecaster.toml --key u42 --from-beginning",
        "tail --config forecaster.toml --from-beginning --no-follow > forecasts.jsonl",
    )
)
@with_settings
def tail(
    settings: Settings,
    *,
    key: Annotated[str | None, typer.Option(help="Of this key only.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="With all that is there.")
    ] = False,
    follow: Annotated[bool, typer.Option(help="Go on at the end.")] = True,
    as_json: AsJson = False,
) -> int:
    """Show forecasts as they are published: a table on a terminal, else JSON lines."""
    out = Console()
    shown = None if as_json or not out.is_terminal else console.ForecastTable()
    with stop_on_signals() as stopping, ExitStack() as stack:
        live = stack.enter_context(Live(console=out)) if shown else None
        for record in topics.read_topic(
            settings,
            settings.output.topic,
            start="earliest" if from_beginning else "latest",
            follow=follow,
            stopping=stopping,
        ):
            if key is not None and record.key != key.encode():
                continue
            if shown and live:
                shown.hear(record)
                live.update(shown.render(out.height - 6))
            else:
                console.print_line(out, console.tail_json(record))
    return OK


@app.command(epilog=examples("lag --config forecaster.toml", "lag --config forecaster.toml --json"))
@with_settings
def lag(settings: Settings, *, as_json: AsJson = False) -> int:
    """Show how far behind its input the service is: records, and how long the oldest has waited."""
    found, now_ms = read_lag(settings), time.time_ns() // 1_000_000
    if as_json:
        about = {"topic": settings.input.topic, "group_id": settings.kafka.group_id}
        rows = [console.lag_json(each, now_ms) for each in found]
        total = sum(each.records for each in found)
        console.print_json(Console(), {**about, "records": total, "partitions": rows})
    else:
        Console().print(console.lag_table(found, now_ms))
    return OK


@app.command(epilog=examples("forget u42 --config forecaster.toml"))
@with_settings
def forget(
    settings: Settings,
    *,
    key: Annotated[str, typer.Argument(help="As forecasts show it.", show_default=False)],
) -> int:
    """Have the service forget a key: its state, and by a tombstone its forecasts.

    Writes the key without a value to every partition of the input topic. Each process erases the
    key from its state when it reads that, now or when it next runs, publishes a tombstone of it on
    the output topic, which compaction turns into nothing, and saves checkpoints without it. Three
    checkpoints are kept of each partition: the key is gone from all of them when three more have
    been saved, after three times state.checkpoint_interval, or later where no records come.

    What stays: the key's records in the input and dead-letter topics, until those topics' own
    retention; and what models shared by all keys have learned, which names no key. Events of the
    key that come later make it known again.
    """
    with topics.EventWriter(settings) as writer:
        partitions = writer.forget(key.encode())
    interval_s = settings.state.checkpoint_interval_ms / 1_000
    console.print_line(
        Console(),
        f"{partitions} partitions of {settings.input.topic} are told to forget {key}; gone from "
        f"all checkpoints after three more, {3 * interval_s:g} s if records keep coming",
    )
    return OK


# -- events from files -----------------------------------------------------------------------------


@app.command(
    name="backtest",
    epilog=examples(
        "backtest --config forecaster.toml --events january.jsonl february.csv.gz",
        "backtest --config forecaster.toml --events events.csv --report report --compare",
    ),
)
@with_settings
def run_backtest(  # noqa: PLR0913  (one parameter per option)
    settings: Settings,
    *,
    events: EventFiles,
    more_events: MoreEventFiles = None,
    partitions: Partitions = 1,
    forecasts: ForecastFile = None,
    report: ReportFolder = None,
    experts: Annotated[
        bool, typer.Option("--experts", help="With a row for each expert of the pool.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Beside it both profiles, the pool alone, and the network zero-shot, online only "
            "and both; up to six runs in one pass, and as much time and memory.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Forecast a file of past events as `run` would have, and print how right it was."""
    from stream_forecaster import backtest  # noqa: PLC0415  (likewise)

    return backtest.backtest(
        settings,
        [*events, *(more_events or ())],
        partitions=partitions,
        forecasts=forecasts,
        report=report,
        experts=experts,
        compare=compare,
        as_json=as_json,
        console=Console(),
    )


@app.command(
    epilog=examples(
        "replay --config forecaster.toml --events events.jsonl --verify forecasts.jsonl",
    )
)
@with_settings
def replay(  # noqa: PLR0913  (one parameter per option)
    settings: Settings,
    *,
    events: EventFiles,
    more_events: MoreEventFiles = None,
    verify: Annotated[
        str | None, typer.Option(metavar="FORECASTS.jsonl", help="What it has to give.")
    ] = None,
    partitions: Partitions = 1,
    forecasts: ForecastFile = None,
    as_json: AsJson = False,
) -> int:
    """Make the forecasts of a file of events again; exit 1 where they differ from --verify."""
    from stream_forecaster import backtest  # noqa: PLC0415  (likewise)

    return backtest.replay(
        settings,
        [*events, *(more_events or ())],
        verify=verify,
        partitions=partitions,
        forecasts=forecasts,
        as_json=as_json,
        console=Console(),
    )


# -- the network's weights -------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "fit --config forecaster.toml --events history.jsonl --out mine.safetensors",
        "run --config forecaster.toml --set model.weights=mine.safetensors  # to start from them",
    )
)
@with_settings
def fit(  # noqa: PLR0913  (one parameter per option)
    settings: Settings,
    *,
    events: EventFiles,
    more_events: MoreEventFiles = None,
    out: WeightsOut,
    passes: Annotated[int, typer.Option(min=1, help="Over the samples, at most.")] = 20,
    partitions: Partitions = 1,
    as_json: AsJson = False,
) -> int:
    """Train the network on a file of past events, from model.weights on; minutes of one core."""
    from stream_forecaster import training  # noqa: PLC0415  (loads torch)

    return training.fit(
        settings,
        [*events, *(more_events or ())],
        out,
        passes=passes,
        partitions=partitions,
        as_json=as_json,
        console=Console(),
    )


@app.command(
    name="pretrain",
    epilog=examples("pretrain --out weights.safetensors", "pretrain --out quick.st --steps 200"),
)
def run_pretraining(
    *,
    out: WeightsOut,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 60_000,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn by lot.")] = 0,
    begin_with: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="Go on from these.")
    ] = None,
) -> None:
    """Train the network on synthetic series, as the weights that ship were; an hour of one core."""
    from stream_forecaster import training  # noqa: PLC0415  (as above)

    out_now = Console()
    raise typer.Exit(
        training.pretrain(out, steps=steps, seed=seed, begin_with=begin_with, console=out_now)
    )


# -- to look things up -----------------------------------------------------------------------------


@app.command(
    name="plan",
    epilog=examples("plan --keys 100k", "plan --keys 1e6 --config forecaster.toml --json"),
)
@with_settings
def show_plan(
    settings: Settings,
    *,
    keys: Annotated[
        int, typer.Option(parser=count, metavar="N", help="How many keys a partition has.")
    ],
    as_json: AsJson = False,
) -> int:
    """Say what the state of so many keys takes in memory, in the full and the lean profile."""
    plans = [plan.plan(settings, keys, profile) for profile in ("full", "lean")]
    if as_json:
        console.print_json(Console(), plans)
    else:
        plan.show(Console(), plans)
    return OK


@app.command(
    name="schema",
    epilog=examples(
        "schema > forecast-1.json",
        "schema score > score-1.json",
        "schema --format asyncapi --config forecaster.toml > asyncapi.json",
    ),
)
@with_settings
def print_message_schema(
    settings: Settings,
    message: Annotated[
        Literal["forecast", "score"], typer.Argument(help="Which message's schema.")
    ] = "forecast",
    *,
    style: Annotated[
        Literal["json-schema", "asyncapi"],
        typer.Option("--format", help="Of the message alone, or of all topics as settings say."),
    ] = "json-schema",
) -> int:
    """Print the JSON Schema of a message, or an AsyncAPI document of the topics."""
    if style == "asyncapi":
        console.print_json(Console(), asyncapi.document(settings))
    else:
        typer.echo(asyncapi.schema(message), nl=False)
    return OK


@app.command(epilog=examples("version"))
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _print_version(wanted: bool) -> None:  # noqa: FBT001  (typer's callback)
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """The options of the command itself."""
