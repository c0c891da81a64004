"""Law: any text, environment and flags become settings, or an error that says which is wrong."""

import os
import string
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream_forecaster import config
from stream_forecaster.cli import main
from stream_forecaster.config import ENVIRONMENT_PREFIX, Settings, load
from stream_forecaster.errors import ConfigError

_SECTIONS: dict[str, list[str]] = {
    name: [field.alias or inner for inner, field in section.annotation.model_fields.items()]
    for name, section in Settings.model_fields.items()
    if isinstance(section.annotation, type)
}
_NAMES = [(section, name) for section, names in _SECTIONS.items() for name in names]
_strings = st.one_of(
    st.text(max_size=10),
    st.from_regex(r"[0-9]{1,20}(ms|s|m|h|d|w|KiB|x)", fullmatch=True),
    st.sampled_from(["SASL_SSL", "PLAIN", "sum", "lean", "UTC", "..", "s3://u:p@x/", "a\0b"]),
    st.integers(4_000, 6_000).map(lambda digits: "9" * digits),
)
_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), _strings, st.dates(), st.times()
)
_trees = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
_toml = st.one_of(
    st.text(max_size=60),
    st.text(string.printable, max_size=60),
    st.builds(
        lambda place, value: f"{place[0]}.{place[1]} = {value}\n",
        st.sampled_from(_NAMES),
        st.one_of(
            st.sampled_from(["0x" + "f" * 5_000, "9" * 5_000, "nan", "1979-05-27", "07:32:00"]),
            st.integers(1, 1_200).map(lambda depth: "[" * depth + "]" * depth),
            st.integers(1, 1_200).map(lambda depth: "{a=" * depth + "1" + "}" * depth),
            st.text(string.printable, max_size=9),
        ),
    ),
)
# What an environment may hold: no null byte, and bytes that are not UTF-8 as lone surrogates.
_texts = st.one_of(
    st.text(st.characters(exclude_characters="\0"), max_size=9),
    _strings.filter(lambda text: "\0" not in text),
    st.sampled_from(["[", "{", "[1e999]", '{"a":1}', ",,", "\udcff", "9" * 5_000]),
    st.integers(1, 20_000).map(lambda depth: "[" * depth),  # Hypothesis shows at most 30,000
    st.integers(1, 1_200).map(lambda depth: "[" * depth + "]" * depth),
    st.integers(1, 1_200).map(lambda depth: '{"a":' * depth + "1" + "}" * depth),
)
_variables = st.one_of(
    st.builds(
        lambda place, end: "__".join(place).upper() + end,
        st.sampled_from(_NAMES),
        st.sampled_from(["", "", "", "_FILE", "__X", "__"]),
    ),
    st.sampled_from(["RESOLUTIONS", "KAFKA", "", "__", "_", "A__B", "RESOLUTIONS__0__STEP"]),
    st.integers(1, 2_000).map(lambda depth: "__".join("A" * depth)),
).map(lambda name: ENVIRONMENT_PREFIX + name)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  (any text at all)
        return file.read(1_000)


def _problem(
    toml: str | None, environment: dict[str, str], flags: dict[str, Any] | None = None
) -> str | None:
    """What is wrong; None where the settings are valid. Raises nothing of its own."""
    try:
        load(toml, environment, flags or {}, _read)
    except ConfigError as error:
        problem = str(error)
    else:
        return None
    assert problem.strip()
    assert len(problem) < 50_000
    return problem


@given(toml=_toml, environment=st.dictionaries(_variables, _texts, max_size=2))
@example(toml="a = " + "[" * 5_000, environment={})
@example(toml="http.port = 0x" + "f" * 20_000, environment={})
def test_anything_becomes_settings_or_an_error(toml: str, environment: dict[str, str]) -> None:
    """Never anything else."""
    _problem(toml, environment)


@given(place=st.sampled_from(_NAMES), value=_trees)
def test_the_error_names_the_setting(place: tuple[str, str], value: object) -> None:
    """A value of any kind where a setting should be: taken, or the section is named."""
    problem = _problem(None, {}, {place[0]: {place[1]: value}})

    assert problem is None or place[0] in problem


@given(variable=_variables, text=_texts)
@example(variable=f"{ENVIRONMENT_PREFIX}INPUT__VALUE", text="\udcff")
@example(variable=f"{ENVIRONMENT_PREFIX}INPUT__KEY", text="[" * 100_000)
def test_the_error_names_the_variable(variable: str, text: str) -> None:
    """So that it can be found, and only a secret's length of what it holds is shown."""
    problem = _problem(None, {variable: text})
    section = variable.removeprefix(ENVIRONMENT_PREFIX).partition("__")[0].lower()

    assert problem is None or variable in problem or section in problem


@given(name=st.text(max_size=12), text=st.one_of(_texts, _strings))
def test_an_assignment_is_taken_or_refused(name: str, text: str) -> None:
    """What comes after --set, too."""
    try:
        flags = config.from_assignments([f"{name}={text}", f"kafka.{name}={text}"])
    except ConfigError:
        return

    _problem(None, {}, flags)


@pytest.mark.parametrize(
    ("toml", "variables"),
    [
        ("a = " + "[" * 5_000, {}),
        ("http.port = 0x" + "f" * 20_000, {}),
        ("", {"INPUT__VALUE": "\udcff"}),
        ("", {"INPUT__KEY": "[" * 50_000}),
        ("", {"KAFKA__GROUP_ID_FILE": "/no\udcff"}),
        ("", {"NO\udcff": "x"}),
    ],
    ids=["nested", "huge", "no text", "nested variable", "no file", "no name"],
)
def test_the_command_exits_2(
    toml: str,
    variables: dict[str, str],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a line that says why, and no traceback."""
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(name)
    for name, text in variables.items():
        monkeypatch.setenv(ENVIRONMENT_PREFIX + name, text)
    path = tmp_path / "settings.toml"
    path.write_text(toml)

    with pytest.raises(SystemExit) as ended:
        main(["config", "check", "--config", str(path)])

    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert len(error) < 2_000
