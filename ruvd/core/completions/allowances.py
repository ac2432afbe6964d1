"""The operator's say: the models, fields and tools that a tenant may ask for, and how much of them.

What a list does not name is not allowed. What is above a ceiling is a wrong field of the request.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from ruvd.core.errors import FieldViolation, PermissionDenied
from ruvd.core.options import CompletionOptions
from ruvd.core.tenant_limits import TenantLimits

# Fields by which servers take other models and tools than those that the API has a field for. They
# are refused with a list of models or tools, unless the operator lists the fields as well.
_MODEL_FIELDS = frozenset(
    {"models", "fallbacks", "fallback_models", "lora", "lora_path", "lora_request", "adapter_id"}
)
_TOOL_FIELDS = frozenset({"plugins", "web_search_options", "mcp_servers", "builtin_tools"})


def is_allowed(name: str, patterns: Sequence[str] | None) -> bool:
    """Tells whether a list has the name; `*` stands for any text, and None allows all."""
    return patterns is None or _pattern(tuple(patterns)).fullmatch(name) is not None


def check_model(model: str, limits: TenantLimits) -> None:
    """Raises PermissionDenied unless the tenant may use the model, whoever has chosen it."""
    if not is_allowed(model, limits.models):
        raise PermissionDenied([denied("options.model", "model", model)])


def denials(options: CompletionOptions, limits: TenantLimits) -> Iterator[FieldViolation]:
    """Yields the fields that ask for what the tenant is not allowed.

    The model is not among them if the options name none, as only the turn knows it then.
    """
    if options.model and not is_allowed(options.model, limits.models):
        yield denied("options.model", "model", options.model)
    for index, tool in enumerate(options.tools):
        if not is_allowed(tool.name, limits.tools):
            yield denied(f"options.tools[{index}].name", "tool", tool.name)
    unlisted: frozenset[str] = frozenset()
    if limits.extra_body is None:
        unlisted |= _MODEL_FIELDS if limits.models is not None else frozenset()
        unlisted |= _TOOL_FIELDS if limits.tools is not None else frozenset()
    for name in options.extra_body:
        if name in unlisted or not is_allowed(name, limits.extra_body):
            yield denied(f"options.extra_body.{name}", "field", name)


def excesses(options: CompletionOptions, limits: TenantLimits) -> Iterator[FieldViolation]:
    """Yields the fields that ask for more than the tenant's ceilings."""
    most = limits.max_output_tokens
    if most is not None and (most == 0 or (options.max_tokens or 0) > most):
        text = f"must be at most {most} for the tenant (max_output_tokens)"
        yield FieldViolation("options.max_tokens", text)
    if limits.max_schema_bytes is None:
        return
    for field, size in _schemas(options):
        if size > limits.max_schema_bytes:
            yield FieldViolation(
                field,
                f"has {size} bytes, the limit of the tenant is {limits.max_schema_bytes} "
                "(max_schema_bytes)",
            )


def with_ceiling(options: CompletionOptions, limits: TenantLimits) -> CompletionOptions:
    """Returns the options for the engine: without `max_tokens` they get the tenant's ceiling."""
    if limits.max_output_tokens is None or options.max_tokens is not None:
        return options
    return replace(options, max_tokens=limits.max_output_tokens)


def _schemas(options: CompletionOptions) -> Iterator[tuple[str, int]]:
    """Yields the fields with schemas and grammars, and their sizes.

    Servers take them in fields of their own, too, so every text, list and object of `extra_body`
    may be one.
    """
    if options.response_format:
        text = options.response_format.json_schema
        yield "options.response_format.json_schema", len(text.encode())
    yield "options.tools", sum(len(tool.parameters.encode()) for tool in options.tools)
    for name, value in options.extra_body.items():
        if isinstance(value, str | list | dict):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"options.extra_body.{name}", len(text.encode())


def denied(field: str, kind: str, name: str) -> FieldViolation:
    """Returns the refusal of a field that names what the tenant may not use."""
    return FieldViolation(field, f"the tenant may not use the {kind} {name!r}")


@lru_cache(1000)
def _pattern(patterns: tuple[str, ...]) -> re.Pattern[str]:
    texts = [".*".join(map(re.escape, each.split("*"))) for each in patterns]
    return re.compile("|".join(texts) if texts else r"(?!)", re.DOTALL)
