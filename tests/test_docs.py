"""What the pages say can be found, followed and typed."""

import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from stream_forecaster import config

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
RUNBOOKS = DOCS / "runbooks.md"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_" + path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _load(DOCS / "generate.py")
COMMANDS = dict(generate.commands())


def prose(text: str) -> str:
    """A page without what stands in fences."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors that the headings of a page make, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def dangling(path: Path, text: str) -> list[str]:
    """Links of a page, with this text, that lead nowhere in the tree."""
    found = []
    for target in re.findall(r"(?:\]\(|<img src=\")([^)\"\s]+)[)\"]", prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        if not other.exists() or (anchor and anchor not in anchors(other)):
            found.append(target)
    return found


def fences(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of every fenced block, wherever it is indented."""
    for indent, language, body in re.findall(
        r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL
    ):
        yield language, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)


def typed(text: str) -> Iterator[list[str]]:
    """Command lines of ours on a page: those in fences, and those in backticks."""
    spans = re.findall(r"`((?:stream-forecaster|make) [^`]+)`", prose(text))
    lines = [
        line
        for language, body in fences(text)
        if language in {"", "sh"}
        for line in body.splitlines()
    ]
    for line in [*lines, *(" ".join(span.split()) for span in spans)]:
        command = line.strip().removeprefix("$ ")
        if re.match(r"(stream-forecaster|make) ", command):
            yield shlex.split(re.split(r" [|>] | 2>| && ", command)[0], comments=True)


def wrong_command(words: list[str]) -> str | None:
    """What a command line says that does not exist."""
    program, *given = words
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        targets = [word for word in given if "=" not in word]
        missing = [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)]
        return f"make has no target {missing[0]}" if missing else None
    if given[0].startswith("-"):
        known = {"--help", "--version", "--install-completion", "--show-completion"}
        return None if given[0] in known else f"no option {given[0]}"
    group = [path for path in COMMANDS if path[: len(given)] == tuple(given)]
    paths = [path for path in COMMANDS if tuple(given[: len(path)]) == path]
    if not paths:
        return None if group else f"no command {' '.join(given[:2])}"
    (path,) = paths
    params = COMMANDS[path].params
    options = {name for p in params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    used = [word.partition("=")[0] for word in given[len(path) :] if word.startswith("-")]
    unknown = [word for word in used if word not in options and word != "-"]
    return f"{' '.join(path)} has no option {unknown[0]}" if unknown else None


@pytest.mark.parametrize("name", generate.pages())
def test_a_page_made_from_the_code_is_up_to_date(name: str) -> None:
    """`make docs` writes it."""
    assert (DOCS / "reference" / name).read_text() == generate.pages()[name]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    """Files of the tree and headings in them."""
    found = dangling(path, path.read_text())

    assert [target for target in found if not target.startswith(("runbooks", "../runbooks"))] == []
    if RUNBOOKS.exists():
        assert found == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_exists(path: Path) -> None:
    """Verbs, options and targets."""
    assert [fault for words in typed(path.read_text()) if (fault := wrong_command(words))] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_settings_file_is_one(path: Path) -> None:
    """All that is fenced as TOML; what needs a secret gets one."""
    secret = {"STREAM_FORECASTER__KAFKA__SASL_PLAIN_PASSWORD": "x"}
    for language, body in fences(path.read_text()):
        if language == "toml":
            config.load(body, secret if "sasl" in body else {}, {}, read_file=str)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_program_is_one(path: Path) -> None:
    """All that is fenced as Python or shell can be read by it."""
    for language, body in fences(path.read_text()):
        if language == "python":
            compile(body, str(path), "exec")
        if language == "sh":
            subprocess.run(["bash", "-nc", body], check=True)  # noqa: S607  (any bash)


def test_every_page_is_found_from_the_first() -> None:
    """By links alone."""
    seen, todo = set[Path](), [DOCS / "index.md"]
    while todo:
        path = todo.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        targets = re.findall(r"\]\(([^)#\s:]+\.md)", prose(path.read_text()))
        todo += [(path.parent / target).resolve() for target in targets]

    assert set(DOCS.rglob("*.md")) <= seen


def test_the_checks_can_fail() -> None:
    """Each of them."""
    page = DOCS / "index.md"

    assert dangling(page, "[a](nowhere.md) [b](../README.md#nowhere) [c](https://x)") == [
        "nowhere.md",
        "../README.md#nowhere",
    ]
    assert dangling(page, "[a](../README.md#measured) [b](tutorial.md)") == []
    assert dangling(page, '<img src="images/gone.png" alt="">') == ["images/gone.png"]
    for line, fault in (
        ("make tea", "make has no target tea"),
        ("stream-forecaster rnu", "no command rnu"),
        ("stream-forecaster --verison", "no option --verison"),
        ("stream-forecaster state forget x", "no command state forget"),
        ("stream-forecaster tail --form-beginning", "tail has no option --form-beginning"),
    ):
        (words,) = typed(f"```\n{line} --json > x  # of it\n```")
        assert wrong_command(words[: len(line.split())]) == fault
        assert [wrong_command(words) for words in typed(f"Type `{line}` now.")] == [fault]
    for line in (
        "make test ARGS=x",
        "stream-forecaster dlq list --limit 5",
        "stream-forecaster dlq",
    ):
        assert [wrong_command(words) for words in typed(f"```sh\n$ {line}\n```")] == [None]
