"""The names of what is measured, and their buckets: OpenTelemetry's semantic conventions.

GenAI is v1.41.1 by default. `gen_ai_latest_experimental` in OTEL_SEMCONV_STABILITY_OPT_IN asks for
the newest, which live in a repository of their own (semantic-conventions-genai) and move: there
the client's metrics are called `gen_ai.client.inference.*`, tokens are counters beside histograms
by direction, and an output message has no finish reason. RPC is v1.41.1, a release candidate.
Names of ours begin with `ruvd.`; units are UCUM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"
LATEST = "gen_ai_latest_experimental"
CAPTURE_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

OPERATION_SECONDS = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
TOKENS = (
    1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
)  # fmt: skip
FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
OUTPUT_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
RPC_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
# Ours. A commit without a disk flush takes about a millisecond.
COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
QUEUE_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BATCH_WRITES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class GenAINames:
    """What differs between the versions. `tokens_by_type` is one histogram with the direction as
    an attribute; without it there are two, and counters."""

    duration: str
    time_to_first_chunk: str
    tokens_by_type: bool
    finish_reason_in_messages: bool


V1_41_1 = GenAINames(
    duration="gen_ai.client.operation.duration",
    time_to_first_chunk="gen_ai.client.operation.time_to_first_chunk",
    tokens_by_type=True,
    finish_reason_in_messages=True,
)
NEWEST = GenAINames(
    duration="gen_ai.client.inference.duration",
    time_to_first_chunk="gen_ai.client.inference.time_to_first_chunk",
    tokens_by_type=False,
    finish_reason_in_messages=False,
)


@dataclass(frozen=True, slots=True)
class Conventions:
    """What is emitted: under which names, and whether with what users and models said."""

    names: GenAINames = V1_41_1
    content: bool = False


def chosen(environment: Mapping[str, str]) -> Conventions:
    """What the environment asks for. Content goes on spans only: we emit no events."""
    opted = {each.strip() for each in environment.get(OPT_IN, "").split(",")}
    capture = environment.get(CAPTURE_CONTENT, "").strip().lower()
    return Conventions(
        NEWEST if LATEST in opted else V1_41_1,
        capture in ("true", "span_only", "span_and_event"),
    )


@dataclass(frozen=True, slots=True)
class Provider:
    """Who generates, as every GenAI span and metric says it: `remote` is another server."""

    name: str
    remote: bool = False
    address: str = ""
    port: int | None = None

    def attributes(self) -> dict[str, str | int]:
        """What every GenAI span and metric carries."""
        known: dict[str, str | int] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self.name,
        }
        if self.address:
            known["server.address"] = self.address
            if self.port:
                known["server.port"] = self.port
        return known


_KNOWN_HOSTS = {
    "api.openai.com": "openai",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
}


def provider(engine: str, affinity: str, base_urls: Sequence[str]) -> Provider:
    """Who generates, by the settings of these names.

    A remote server is known by its host, then by what kind of server it is said to be. Its address
    is told only where there is one, because a span does not know which of several answered.
    """
    if engine != "openai":
        return Provider({"llama": "llama.cpp"}.get(engine, engine))
    urls = [urlsplit(url) for url in base_urls]
    hosts = {url.hostname or "" for url in urls}
    kinds = {"none": "openai-compatible", "llama-server": "llama.cpp"}
    host = hosts.pop() if len(hosts) == 1 else ""
    name = _KNOWN_HOSTS.get(host) or kinds.get(affinity, affinity)
    if len(urls) != 1:
        return Provider(name, remote=True)
    port = urls[0].port or (443 if urls[0].scheme == "https" else 80)
    return Provider(name, remote=True, address=host, port=port)
