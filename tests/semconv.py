"""The names of OpenTelemetry's semantic conventions that ruvd uses.

They are copied by hand from the conventions: RPC, HTTP and GenAI from v1.41.1, the newest GenAI
from the repository semantic-conventions-genai. All other names must begin with `ruvd.`.
"""

from __future__ import annotations

OPERATION = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
]  # fmt: skip
TOKENS = [4**power for power in range(14)]
RPC = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
_FIRST = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
_EACH = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]

# Name: unit, and the buckets of a histogram.
_SAME: dict[str, tuple[str, list[float] | None]] = {
    "gen_ai.server.time_to_first_token": ("s", _FIRST),
    "gen_ai.server.time_per_output_token": ("s", _EACH),
    "rpc.server.call.duration": ("s", RPC),
}
# Only of a daemon that serves HTTP.
HTTP: dict[str, tuple[str, list[float] | None]] = {"http.server.request.duration": ("s", RPC)}
V1_41_1 = _SAME | {
    "gen_ai.client.operation.duration": ("s", OPERATION),
    "gen_ai.client.operation.time_to_first_chunk": ("s", OPERATION),
    "gen_ai.client.token.usage": ("{token}", TOKENS),
}
NEWEST = _SAME | {
    "gen_ai.client.inference.duration": ("s", OPERATION),
    "gen_ai.client.inference.time_to_first_chunk": ("s", OPERATION),
    "gen_ai.client.inference.operation.input_tokens": ("{token}", TOKENS),
    "gen_ai.client.inference.operation.output_tokens": ("{token}", TOKENS),
    "gen_ai.client.inference.usage.input_tokens": ("{token}", None),
    "gen_ai.client.inference.usage.output_tokens": ("{token}", None),
    "gen_ai.client.inference.usage.cache_read.input_tokens": ("{token}", None),
}

_COMMON = {"error.type", "server.address", "server.port"}
_GENAI = _COMMON | {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"}
RPC_ATTRIBUTES = _COMMON | {"rpc.system.name", "rpc.method", "rpc.response.status_code"}
RPC_SPAN_ATTRIBUTES = RPC_ATTRIBUTES | {"network.peer.address", "network.peer.port"}
HTTP_ATTRIBUTES = {
    "error.type", "http.request.method", "http.response.status_code", "http.route", "url.scheme",
}  # fmt: skip
HTTP_SPAN_ATTRIBUTES = HTTP_ATTRIBUTES | {
    "http.request.method_original",
    "network.peer.address",
    "network.peer.port",
    "network.protocol.version",
    "url.path",
    "url.query",
    "user_agent.original",
}
# The id of a session is on spans only.
METRIC_ATTRIBUTES = (
    _GENAI | RPC_ATTRIBUTES | HTTP_ATTRIBUTES | {"gen_ai.token.type", "gen_ai.token.modality"}
)
GENAI_SPAN_ATTRIBUTES = _GENAI | {
    "gen_ai.conversation.id",
    "gen_ai.output.type",
    "gen_ai.request.frequency_penalty",
    "gen_ai.request.max_tokens",
    "gen_ai.request.presence_penalty",
    "gen_ai.request.seed",
    "gen_ai.request.stop_sequences",
    "gen_ai.request.stream",
    "gen_ai.request.temperature",
    "gen_ai.request.top_p",
    "gen_ai.response.finish_reasons",
    "gen_ai.response.time_to_first_chunk",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
}
CONTENT_ATTRIBUTES = {
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.tool.definitions",
}
SPAN_ATTRIBUTES = RPC_SPAN_ATTRIBUTES | HTTP_SPAN_ATTRIBUTES | GENAI_SPAN_ATTRIBUTES


def strangers(names: set[str], known: set[str]) -> set[str]:
    """Returns the names that are neither in `known` nor begin with `ruvd.`."""
    return {name for name in names if name not in known and not name.startswith("ruvd.")}
