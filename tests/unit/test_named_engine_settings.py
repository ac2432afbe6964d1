"""The tables `[engines.NAME]` of ruvd.toml: what they may hold, and errors that name the field."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from ruvd.config.loader import SettingsInvalid, load, printable_values
from ruvd.core.text import star_pattern, star_patterns_overlap

CLOUD = '[engines.cloud]\nbase_url = "https://cloud.example"\nmodel = "big"\n'
HINT = "did you mean engines.cloud.retries?"
LAB = '[engines.lab]\nbase_url = ["http://a:1", "http://b:2/v1"]\nmodel = "m"\n'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def errors(text: str) -> list[str]:
    """The lines of the error of a file with this text; empty if it is valid."""
    Path("ruvd.toml").write_text(text)
    try:
        load({})
    except SettingsInvalid as error:
        return str(error).splitlines()
    return []


def test_a_table_has_the_settings_of_the_engine_openai_and_its_own_defaults() -> None:
    own = 'models = ["big", "big-*"]\nretries = 5\nbreaker_seconds = 3\naffinity = "vllm"\n'
    Path("ruvd.toml").write_text(f"retries = 1\n{CLOUD}{own}{LAB}")
    settings, _ = load({})
    cloud, lab = settings.engines["cloud"], settings.engines["lab"]
    assert list(settings.engines) == ["cloud", "lab"]
    assert cloud.base_url == ["https://cloud.example/v1"]
    assert lab.base_url == ["http://a:1/v1", "http://b:2/v1"]
    assert (cloud.retries, cloud.breaker_seconds, cloud.affinity) == (5, 3.0, "vllm")
    assert (lab.retries, lab.breaker_failures, lab.models) == (2, 5, [])
    assert settings.retries == 1


def test_without_tables_there_are_no_named_engines() -> None:
    assert load({})[0].engines == {}


def test_the_settings_that_are_printed_have_the_tables_without_their_secrets() -> None:
    Path("ruvd.toml").write_text(f'{CLOUD}api_key = "sk-1234"\nmodels = ["big", "a,b"]\n')
    settings, sources = load({})
    printed = printable_values(settings)
    assert printed["engines.cloud.api_key"] == "(hidden)"
    assert printed["engines.cloud.models"] == '["big", "a,b"]'
    assert sources["engines.cloud.model"] == "ruvd.toml"
    assert "engines.cloud.retries" not in printed
    assert "sk-1234" not in repr(settings) + repr(settings.engines) + str(printed)
    assert printed.keys() == sources.keys()


def test_named_engines_have_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUVD_ENGINES", "{}")
    assert errors("") == ["RUVD_ENGINES is not a setting; did you mean engine?"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("engines = 3\n", ["engines (from ruvd.toml): must be tables, [engines.NAME]"]),
        (
            "[engines]\ncloud = 3\n",
            ["engines.cloud (from ruvd.toml): must be a table, [engines.cloud]"],
        ),
        (
            "[engines.cloud]\n",
            [
                "engines.cloud.base_url (from ruvd.toml): must be set",
                "engines.cloud.model (from ruvd.toml): must be set",
            ],
        ),
        (
            f"{CLOUD}retrys = 1\nretries = 11\nengine = 'llama'\n",
            [
                "engines.cloud.retries (from ruvd.toml): Input should be less than or equal to 10",
                f"engines.cloud.retrys (from ruvd.toml): is not a setting; {HINT}",
                "engines.cloud.engine (from ruvd.toml): is not a setting",
            ],
        ),
        (
            f"max_session = 1\n{CLOUD}client_key_file = 'k'\n",
            [
                "ruvd.toml: max_session is not a setting; did you mean max_sessions?",
                "engines.cloud (from ruvd.toml): client_key_file needs client_cert_file",
            ],
        ),
        (
            f"{CLOUD}models = ['big', '']\n",
            ["engines.cloud.models (from ruvd.toml): '' is no name or pattern of a model"],
        ),
        (
            f"{CLOUD}models = ['small']\n",
            ["engines.cloud.model (from ruvd.toml): 'big' is not among its models"],
        ),
    ],
)
def test_every_wrong_field_is_named(text: str, expected: list[str]) -> None:
    assert errors(text) == expected


@pytest.mark.parametrize("name", ["a/b", "a b", "-a", "", "x" * 33, "ä", "a.b"])
def test_a_name_that_no_engine_can_have_is_refused(name: str) -> None:
    (error,) = errors(CLOUD.replace("engines.cloud", f'engines."{name}"'))
    assert error.startswith(f"engines.{name} (from ruvd.toml): the name of an engine has")


def test_there_may_be_32_named_engines() -> None:
    tables = [CLOUD.replace("cloud]", f"e{number}]") for number in range(33)]
    assert errors("".join(tables[:32])) == []
    (error,) = errors("".join(tables))
    assert error.startswith("engines (from ruvd.toml): there may be at most 32")


@pytest.mark.parametrize(
    ("cloud", "lab", "wrong"),
    [
        (["big", "x"], ["m", "x"], ["engines.lab.models"]),
        (["big", "x-*"], ["m", "*-y"], ["engines.lab.models"]),
        (["*"], ["*"], ["engines.lab.models"]),
        (["big", "x*"], ["m", "x1", "y*"], []),  # the whole name goes before a pattern
        (["big", "lab/m"], ["m"], ["engines.cloud.models"]),
        (["big", "lab"], ["m"], ["engines.cloud.models"]),
        (["big", "other/m"], ["m"], []),
    ],
)
def test_a_model_that_two_engines_claim_is_refused(
    cloud: list[str], lab: list[str], wrong: list[str]
) -> None:
    found = errors(f"{CLOUD}models = {cloud}\n{LAB}models = {lab}\n")
    assert [error.partition(" ")[0] for error in found] == wrong


def test_the_models_of_an_engine_are_bounded() -> None:
    names = [f"m{number}" for number in range(199)]
    assert errors(f"{CLOUD}models = {['big', *names]}\n") == []
    (error,) = errors(f"{CLOUD}models = {['big', 'x', *names]}\n")
    assert error.startswith("engines.cloud.models (from ruvd.toml): List should have at most 200")
    patterns = [f"{number}-*" for number in range(100)]
    assert errors(f"{CLOUD}models = {['big', *patterns]}\n{LAB}models = ['m']\n") == []
    (error,) = errors(f"{CLOUD}models = {['big', *patterns]}\n{LAB}models = ['m', 'x*']\n")
    assert error == "engines (from ruvd.toml): there may be at most 100 patterns in models"


def test_a_pattern_of_many_stars_is_matched_at_once() -> None:
    pattern = star_pattern("*a" * 40 + "*b")
    assert not pattern.fullmatch("a" * 256)
    assert pattern.fullmatch("a" * 255 + "b")


def test_patterns_overlap_if_a_text_matches_both() -> None:
    patterns = ["".join(each) for size in range(4) for each in product("ab*", repeat=size)]
    texts = ["".join(each) for size in range(7) for each in product("ab", repeat=size)]
    matching = {
        each: {text for text in texts if star_pattern(each).fullmatch(text)} for each in patterns
    }
    for one, other in product(patterns, patterns):
        assert star_patterns_overlap(one, other) == bool(matching[one] & matching[other])
