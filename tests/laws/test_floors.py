"""The import rule: a module imports only modules above it in `LIST`.

The same list is the reading order and the path that data takes. The core, above the first `edge`
module, is a function of its arguments: no clock, no I/O, no log, no unseeded randomness.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import stream_forecaster

PACKAGE = Path(stream_forecaster.__file__).parent

LIST = (
    "errors",
    "compiled",
    "archive",
    "calendar",
    "config",
    "records",
    "flat_json",
    "events",
    "dead_letters",
    "interning",
    "keys",
    "windows",
    "baselines",
    "scoring",
    "spread",
    "regression",
    "dlinear",
    "river_adapter",
    "seasonal_ridge",
    "experts",
    "architecture",
    "network",
    "inference",
    "inputs",
    "weights",
    "samples",
    "pace",
    "learning",
    "worth",
    "stacking",
    "fusion",
    "lstm",
    "calibration",
    "negative_binomial",
    "quantile_regression",
    "agreement",
    "drift",
    "due",
    "paths",
    "standing",
    "pool",
    "scales",
    "json_rows",
    "forecasts",
    "checkpoint",
    "shard",
    "fit",
    "synth",
    "processes",
    "rhythms",
    "minutes",
    "series",
    "pretrain",
    "edge.memory",
    "edge.files",
    "edge.store",
    "edge.saver",
    "edge.weights_file",
    "edge.inspection",
    "edge.broker",
    "edge.tls",
    "edge.refusals",
    "edge.connection",
    "edge.topics",
    "edge.lag",
    "reader",
    "asyncapi",
    "edge.record_batches",
    "edge.columnar",
    "edge.record_writing",
    "edge.bulk",
    "edge.publisher",
    "edge.redelivery",
    "edge.simulator",
    "edge.instance",
    "edge.header_names",
    "edge.kafka",
    "edge.logs",
    "edge.telemetry",
    "edge.scoreboard",
    "edge.viewers",
    "edge.heap",
    "edge.compiling",
    "edge.world",
    "edge.listener",
    "edge.live",
    "edge.http",
    "edge.console",
    "edge.options",
    "edge.subcommands",
    "edge.signals",
    "labels",
    "tables",
    "accuracy",
    "report_contents",
    "report_plots",
    "report_page",
    "report",
    "recording",
    "passes",
    "variants",
    "backtest",
    "plan",
    "training",
    "recovery",
    "pending",
    "saving",
    "lookback",
    "views",
    "showing",
    "service",
    "demo_board",
    "demo_service",
    "demo_page",
    "demo_users",
    "demo_trials",
    "demo",
    "cli",
    "__main__",
)
"""Top to bottom; an entry that is a package stands for all its modules, which order themselves."""

CORE = frozenset(LIST[: LIST.index("edge.memory")])

ONLY_IN = {
    "torch": {"network", "weights", "learning"},
    "kafka": {
        "edge.broker",
        "edge.bulk",
        "edge.columnar",
        "edge.connection",
        "edge.header_names",
        "edge.kafka",
        "edge.publisher",
        "edge.redelivery",
        "edge.refusals",
        "edge.topics",
    },
    "prometheus_client": {"edge.telemetry"},
    "river": {"drift", "river_adapter"},
    "safetensors": {"archive"},
    "numba": {"compiled"},
    "threadpoolctl": {"scales"},
}
WORLD = frozenset(
    """asyncio fsspec glob io logging multiprocessing os pathlib random rich secrets shutil signal
    socket structlog subprocess sys tempfile threading time urllib""".split()  # noqa: SIM905  (a list of words reads better)
)
WORLDLY_NAMES = frozenset({"open", "print", "input"})
WORLDLY_METHODS = frozenset({"now", "utcnow", "today", "uuid1", "uuid4"})
SEEDED = frozenset({"default_rng", "Generator", "PCG64", "Philox", "SeedSequence"})


def violations(module: str, source: str) -> list[str]:
    """What `source`, as the module of that name, does that its floor does not allow."""
    tree = ast.parse(source)
    entry = _entry(module)
    found = [_import_fault(module, entry, name) for name in _imports(tree)]
    if entry in CORE:
        found += [_call_fault(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        found += ["global state" for node in ast.walk(tree) if isinstance(node, ast.Global)]
    return [fault for fault in found if fault]


def _entry(module: str) -> str | None:
    return next((e for e in LIST if module == e or module.startswith(f"{e}.")), None)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            # `from package import module` and `from module import name` look alike
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _import_fault(module: str, entry: str | None, name: str) -> str | None:
    top, _, inner = name.partition(".")
    if not top:
        return f"relative import {name}: write the full name"
    if top == "stream_forecaster":
        target = _entry(inner)
        if target in (None, entry) or (entry and LIST.index(target) < LIST.index(entry)):
            return None
        return f"{module} imports {target}, which is not above it"
    if top in ONLY_IN and entry not in ONLY_IN[top]:
        return f"only {', '.join(sorted(ONLY_IN[top]))} may import {top}"
    return f"the core imports {top}" if entry in CORE and top in WORLD else None


def _call_fault(call: ast.Call) -> str | None:
    match call.func:
        case ast.Name(id=name) if name in WORLDLY_NAMES:
            return f"the core calls {name}()"
        case ast.Attribute(attr=name) if name in WORLDLY_METHODS:
            return f"the core calls .{name}()"
        case ast.Attribute(value=ast.Attribute(attr="random"), attr=name) if name not in SEEDED:
            return f"the core draws from numpy's global generator: random.{name}()"
        case ast.Attribute(attr="default_rng") if not call.args:
            return "the core makes a generator without a seed"
        case _:
            return None


def _modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def test_every_module_is_on_the_list() -> None:
    """A module that nobody placed has no floor."""
    packages = {"", "edge"}

    assert [m for m in _modules() if m not in packages and _entry(m) is None] == []


@pytest.mark.parametrize("module", _modules())
def test_no_module_reaches_down_or_out(module: str) -> None:
    """Each module keeps to its floor."""
    assert violations(module, _modules()[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("events", "from stream_forecaster import windows", "not above it"),
        ("events", "from stream_forecaster.windows import Windows", "not above it"),
        ("events", "import stream_forecaster.windows", "not above it"),
        ("shard", "from stream_forecaster.edge.kafka import KafkaTransport", "not above it"),
        ("shard", "def f():\n    import stream_forecaster.service", "not above it"),
        ("edge.memory", "from stream_forecaster.edge.http import serve", "not above it"),
        ("edge", "from stream_forecaster.edge.kafka import KafkaTransport", "not above it"),
        ("edge.kafka", "from . import store", "relative import"),
        ("shard", "import torch.nn", "may import torch"),
        ("service", "from kafka import KafkaConsumer", "may import kafka"),
        ("service", "from prometheus_client import Counter", "may import prometheus_client"),
        ("windows", "import time", "imports time"),
        ("windows", "from os.path import join", "imports os"),
        ("windows", "from datetime import datetime\ndatetime.now()", "calls .now()"),
        ("windows", "open('x')", "calls open()"),
        ("windows", "import numpy as np\nnp.random.rand(3)", "global generator"),
        ("windows", "import numpy as np\nnp.random.default_rng()", "without a seed"),
        ("windows", "n = 0\ndef f():\n    global n", "global state"),
    ],
)
def test_a_planted_breach_is_seen(module: str, source: str, fault: str) -> None:
    """The checker can fail."""
    assert [v for v in violations(module, source) if fault in v], f"missed in {module}: {source}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("windows", "from stream_forecaster.errors import StreamForecasterError"),
        ("windows", "import numpy as np\nnp.random.default_rng(3)"),
        ("network", "import torch"),
        ("edge.broker.wire", "from kafka.protocol import api"),
        ("edge.broker.wire", "from stream_forecaster.edge.broker.log import Log"),
        ("service", "import time\nfrom stream_forecaster.edge.kafka import KafkaTransport"),
        ("cli", "from stream_forecaster import __version__, service"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    """The checker can pass."""
    assert violations(module, source) == []
