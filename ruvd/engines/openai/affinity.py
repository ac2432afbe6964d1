"""The key that tells a server which calls belong to one session, and so use the same cache.

A session's id may be personal data, so the key is a hash of it with the deployment's salt.

| preset | where the key is sent | source |
|---|---|---|
| `openai` | the body's `prompt_cache_key` | developers.openai.com, guide Prompt caching |
| `vllm` | the header `X-Session-ID` | vllm-project/router, docs/load_balancing |
| `sglang` | the header `X-SMG-Routing-Key` | SGLang model gateway, sticky sessions |
| `llama-server` | nowhere, because the server finds the slot by the prompt | |

`affinity_header` replaces the header's name, or adds a header to a preset that has none.

`cache_salt` separates the cache of a deployment on servers with that field (vLLM, SGLang). The salt
of a tenant is derived from it; other servers cannot tell tenants' caches apart. A
completion that bypasses the cache gets a salt of its own there, and is rejected everywhere else.
llama-server has no salt: with `cache_prompt` false it reuses nothing, but keeps what it evaluated.
"""

import base64
import hashlib
import secrets
from typing import Literal, TypeAlias

from ruvd.core.errors import EngineRejected
from ruvd.core.ports.engine import EngineRequest
from ruvd.core.tenants import DEFAULT

Preset: TypeAlias = Literal["none", "openai", "vllm", "sglang", "llama-server"]

_HEADERS: dict[str, str] = {"vllm": "X-Session-ID", "sglang": "X-SMG-Routing-Key"}
_SALTED_PRESETS = {"vllm", "sglang"}
_KEY_BYTES = 24


class Affinity:
    """The fields and headers that one kind of server takes."""

    def __init__(self, preset: Preset = "none", header: str = "", cache_salt: str = "") -> None:
        self.preset = preset
        self._header = header or _HEADERS.get(preset, "")
        self._salt = cache_salt

    def check(self, request: EngineRequest) -> None:
        """Raises EngineRejected if the request must bypass the cache and the server cannot."""
        if request.options.bypass_cache and self.preset not in _SALTED_PRESETS:
            raise EngineRejected(
                "bypass_cache needs a server with a cache salt: the setting affinity is"
                f" {self.preset!r}, only vllm and sglang have one"
            )

    def fields(self, request: EngineRequest) -> dict[str, str]:
        """Returns the fields to add to the body."""
        fields: dict[str, str] = {}
        if self.preset == "openai" and request.session_key:
            fields["prompt_cache_key"] = self._key(request.session_key)
        if self.preset in _SALTED_PRESETS:
            if request.options.bypass_cache:
                fields["cache_salt"] = secrets.token_urlsafe(_KEY_BYTES)
            elif request.tenant != DEFAULT:
                fields["cache_salt"] = self._key(f"tenant {request.tenant}")
            elif self._salt:
                fields["cache_salt"] = self._salt
        return fields

    def headers(self, request: EngineRequest) -> dict[str, str]:
        """Returns the headers to add."""
        if not (self._header and request.session_key):
            return {}
        return {self._header: self._key(request.session_key)}

    def _key(self, session_key: str) -> str:
        digest = hashlib.sha256(f"{self._salt}\0{session_key}".encode()).digest()
        return base64.urlsafe_b64encode(digest[:_KEY_BYTES]).decode()
