"""The names and buckets of OpenTelemetry's semantic conventions.

The GenAI conventions are v1.41.1 by default. `gen_ai_latest_experimental` in
OTEL_SEMCONV_STABILITY_OPT_IN selects the newest ones, which have a repository of their own
(semantic-conventions-genai) and still change: their client metrics are called
`gen_ai.client.inference.*`, tokens are counters and one histogram for each direction, and an output
message has no finish reason. The RPC conventions are v1.41.1, a release candidate, and those of
HTTP are stable. Our own names begin with `ruvd.`. Units are UCUM.
"""

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
HTTP_SECONDS = RPC_SECONDS
# The buckets of our own metrics. A commit without a disk flush takes about a millisecond.
COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
QUEUE_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BATCH_WRITES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class GenAINames:
    """The names that differ between the versions of the GenAI conventions."""

    duration: str
    time_to_first_chunk: str
    is_newest: bool


V1_41_1 = GenAINames(
    duration="gen_ai.client.operation.duration",
    time_to_first_chunk="gen_ai.client.operation.time_to_first_chunk",
    is_newest=False,
)
NEWEST = GenAINames(
    duration="gen_ai.client.inference.duration",
    time_to_first_chunk="gen_ai.client.inference.time_to_first_chunk",
    is_newest=True,
)


@dataclass(frozen=True, slots=True)
class Conventions:
    """The names to use, and whether spans include message content."""

    names: GenAINames = V1_41_1
    content: bool = False


def chosen(environment: Mapping[str, str]) -> Conventions:
    """Returns the conventions that the environment selects.

    Any value that enables content puts it on spans, because ruvd emits no events.
    """
    opted = {value.strip() for value in environment.get(OPT_IN, "").split(",")}
    capture = environment.get(CAPTURE_CONTENT, "").strip().lower()
    return Conventions(
        NEWEST if LATEST in opted else V1_41_1,
        capture in ("true", "span_only", "span_and_event"),
    )


@dataclass(frozen=True, slots=True)
class Provider:
    """The provider of the model. `remote` means a server outside of the daemon."""

    name: str
    remote: bool = False
    address: str = ""
    port: int | None = None

    def attributes(self) -> dict[str, str | int]:
        """Returns the attributes of every GenAI span and metric."""
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self.name,
        }
        if self.address:
            attributes["server.address"] = self.address
            if self.port:
                attributes["server.port"] = self.port
        return attributes


_KNOWN_HOSTS = {
    "api.openai.com": "openai",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
}


def provider(engine: str, affinity: str, base_urls: Sequence[str]) -> Provider:
    """Returns the provider for the settings of these names.

    A remote server is named after its host if that is well known, otherwise after the kind of
    server in `affinity`. The address is included only if there is exactly one, because a span does
    not know which of several servers answered.
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
