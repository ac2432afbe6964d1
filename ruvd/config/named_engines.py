"""The tables `[engines.NAME]` of ruvd.toml: engines beside the one of the setting `engine`.

They are no fields of `Settings`, because they have neither flags nor variables.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

from pydantic import ConfigDict, ValidationError, field_validator

from ruvd.config.fields import Texts, setting
from ruvd.config.openai_settings import OpenAISettings
from ruvd.core.text import star_pattern, star_patterns_overlap

TABLE = "engines"
UNKNOWN = "is not a setting"
_MAX_ENGINES = 32
_MAX_MODELS = 200
_MAX_PATTERNS = 100  # of all engines, as a model may be compared with each
_MAX_NAME = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_NAME_RULE = (
    "the name of an engine has 1 to 32 letters, digits, hyphens and underscores, and begins with a "
    "letter or a digit"
)


class NamedEngineSettings(OpenAISettings):
    """The settings of one named engine."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    base_url: Texts = setting(
        "Named engines",
        ...,
        "openai: base URLs of the servers, in order of preference; the next if one is down. "
        "A query (?api-version=) is sent with every request.",
        min_length=1,
    )
    model: str = setting(
        "Named engines",
        ...,
        "openai: model of a call that names the engine alone.",
        min_length=1,
    )
    models: list[str] = setting(
        "Named engines",
        [],
        "Models of the engine, which a call may name without the engine; `*` stands for any text. "
        "The engine has no others then. Empty: a call names the engine (NAME/MODEL), and may name "
        "any model.",
        max_length=_MAX_MODELS,
    )
    window_tokens: int | None = setting(
        "Named engines",
        None,
        "Tokens of a turn beyond which a window without a limit of its own is trimmed. Unset: no "
        "limit, as the context of a server is not known.",
        ge=1,
    )

    @field_validator("models")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        for name in value:
            if not name or len(name) > _MAX_NAME or not name.isprintable() or name != name.strip():
                raise ValueError(f"{name!r} is no name or pattern of a model")
        return value


class Problem(NamedTuple):
    """A wrong setting: its path in the file, such as `engines.NAME.retries`, and what is wrong."""

    setting: str
    text: str


def parse(table: Any) -> tuple[Mapping[str, NamedEngineSettings], list[Problem]]:
    """Returns the named engines of the table `engines`, and everything that is wrong in it."""
    if not isinstance(table, dict):
        return {}, [Problem(TABLE, "must be tables, [engines.NAME]")]
    engines: dict[str, NamedEngineSettings] = {}
    problems: list[Problem] = []
    if len(table) > _MAX_ENGINES:
        problems.append(Problem(TABLE, f"there may be at most {_MAX_ENGINES} named engines"))
    for name, values in table.items():
        path = f"{TABLE}.{name}"
        if not _NAME.fullmatch(name):
            problems.append(Problem(path, _NAME_RULE))
        elif not isinstance(values, dict):
            problems.append(Problem(path, f"must be a table, [engines.{name}]"))
        else:
            try:
                engines[name] = NamedEngineSettings(**values)
            except ValidationError as error:
                problems += _problems(path, error)
    return engines, problems or list(_ambiguities(engines))


def _problems(path: str, error: ValidationError) -> Iterator[Problem]:
    for each in error.errors():
        text = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            text = UNKNOWN
        elif each["type"] == "missing":
            text = "must be set"
        yield Problem(".".join([path, *map(str, each["loc"])]), text)


def _ambiguities(engines: Mapping[str, NamedEngineSettings]) -> Iterator[Problem]:
    """Yields the models that two engines claim, so that a name would not say which one is meant."""
    for name, engine in engines.items():
        field = f"{TABLE}.{name}.models"
        for model in engine.models:
            owner = model.partition("/")[0]
            if owner in engines:
                text = f"{model!r} would name the engine {owner}; leave its name out here"
                yield Problem(
                    field, text if "/" in model else f"{model!r} names the engine {owner}"
                )
        if engine.models and not any(
            star_pattern(m).fullmatch(engine.model) for m in engine.models
        ):
            yield Problem(f"{TABLE}.{name}.model", f"{engine.model!r} is not among its models")
    if sum("*" in model for engine in engines.values() for model in engine.models) > _MAX_PATTERNS:
        yield Problem(TABLE, f"there may be at most {_MAX_PATTERNS} patterns in models")
        return
    for (name, engine), (other, another) in combinations(engines.items(), 2):
        for model, claimed in _overlaps(engine.models, another.models):
            text = f"{claimed!r} is ambiguous: {model!r} of {TABLE}.{name}.models names the same"
            yield Problem(f"{TABLE}.{other}.models", text)


def _overlaps(models: Sequence[str], others: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the pairs that name the same model.

    A whole name and a pattern do not, because the whole name goes before the pattern.
    """
    names = set(others)
    yield from ((each, each) for each in models if each in names and "*" not in each)
    patterns = [each for each in models if "*" in each]
    for one, other in product(patterns, (each for each in others if "*" in each)):
        if star_patterns_overlap(one, other):
            yield one, other
