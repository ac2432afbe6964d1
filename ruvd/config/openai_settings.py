"""The settings of OpenAI-compatible servers, which the engine `openai` and named engines have.

A secret has no flag, because every user of a machine can read a process's command line.
"""

from functools import partial
from typing import Any, Literal, Self

from pydantic import BaseModel, SecretStr, field_validator, model_validator

from ruvd.config.addresses import server_url
from ruvd.config.fields import OptionalPath, Texts, setting

_HEADER = r"^[A-Za-z0-9-]{0,100}$"

_openai = partial(setting, "Engine openai")


def _secret(description: str) -> Any:
    return _openai(SecretStr(""), f"{description} It has no flag, as it is a secret.")


class OpenAISettings(BaseModel):
    """The settings of an engine that calls OpenAI-compatible servers."""

    base_url: Texts = _openai(
        [],
        "openai: base URLs of the servers, in order of preference; the next if one is down. "
        "A query (?api-version=) is sent with every request.",
    )
    model: str = _openai("", "openai: model of a call that names none.")
    api_key: SecretStr = _secret("openai: API key of the servers.")
    api_key_file: OptionalPath = _openai(
        None, "openai: file with the API key. It is read again when it changes."
    )
    affinity: Literal["none", "openai", "vllm", "sglang", "llama-server"] = _openai(
        "none", "openai: kind of server, which decides how the calls of a session are marked."
    )
    affinity_header: str = _openai(
        "",
        "openai: name of the header for a session's key, if not that of the kind.",
        pattern=_HEADER,
    )
    cache_salt: SecretStr = _secret(
        "openai: salt of this deployment's prefix cache on vLLM and SGLang."
    )
    send_back: Literal["auto", "none", "signatures", "reasoning_content", "reasoning"] = _openai(
        "auto",
        "openai: what a server gets back of its answers with tool calls: nothing, its signatures, "
        "or also the reasoning, in the field of that name. auto: signatures, and reasoning_content "
        "where the host is known to need it.",
    )
    ca_file: OptionalPath = _openai(
        None, "openai: CA certificates (PEM) to trust instead of the system's."
    )
    client_cert_file: OptionalPath = _openai(
        None, "openai: client certificate (PEM). It may contain the key."
    )
    client_key_file: OptionalPath = _openai(
        None, "openai: unencrypted key (PEM) of the client certificate."
    )
    connect_seconds: float = _openai(
        5.0, "openai: seconds within which a connection must be made.", gt=0
    )
    read_seconds: float = _openai(
        120.0, "openai: longest silence in seconds, before a token or after.", gt=0
    )
    total_seconds: float = _openai(
        600.0, "openai: seconds of a completion, retries included.", gt=0
    )
    max_parallel: int | None = _openai(
        None, "openai: most calls in flight to the servers. Unset: no limit.", ge=1
    )
    retries: int = _openai(
        2, "openai: retries of a completion before its first token.", ge=0, le=10
    )
    max_retry_after_seconds: float = _openai(
        3600.0,
        "openai: longest Retry-After of a server that is passed on, in seconds; more is cut to it.",
        ge=0,
        le=366 * 86_400,
    )
    breaker_failures: int = _openai(
        5, "openai: failures in a row after which a server gets no calls for a while.", ge=1
    )
    breaker_seconds: float = _openai(
        10.0, "openai: seconds for which such a server gets no calls.", gt=0
    )
    health_check_seconds: float = _openai(
        10.0, "openai: seconds between health checks of a server.", gt=0
    )

    @field_validator("base_url")
    @classmethod
    def _servers(cls, value: list[str]) -> list[str]:
        # A flag that comes once may hold several, too.
        return [server_url(url.strip()) for urls in value for url in urls.split(",")]

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if self.client_key_file and not self.client_cert_file:
            raise ValueError("client_key_file needs client_cert_file")
        return self
