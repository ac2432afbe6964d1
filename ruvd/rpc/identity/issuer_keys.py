"""The public keys of an issuer of JWTs: a JSON Web Key Set (RFC 7517) from a file or a URL.

Symmetric keys are not taken: whoever could check a token with one could also make one.
"""

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from ruvd.core.ports.secrets import ReloadedSecret, SecretOutcome
from ruvd.rpc.watched_files import Contents, WatchedFiles

_SETTING, _URL_SETTING = "jwt_jwks_file", "jwt_jwks_url"
_KEY_TYPES = {"R": "RSA", "P": "RSA", "ES": "EC", "Ed": "OKP"}  # by how an algorithm begins
_PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth"}
_MIN_RSA_BITS = 2048
_FETCH_SECONDS = 5.0
_REFRESH_SECONDS = 300.0
_REST_SECONDS = 10.0
_MAX_BYTES = 1 << 20

_log = logging.getLogger("ruvd.daemon")


class _Key(NamedTuple):
    id: str | None
    kind: str
    algorithm: str | None
    key: Any


class KeySet:
    """The keys of a JSON Web Key Set that can check signatures. Raises ValueError for no set."""

    def __init__(self, content: bytes) -> None:
        try:
            keys = json.loads(content)["keys"]
            self._keys = [key for each in keys if (key := _key(each))]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError("is not a JSON Web Key Set") from None
        if not self._keys:
            raise ValueError("has no public key that can check signatures")

    def find(self, key_id: str | None, algorithm: str) -> Any:
        """Returns the key with the id for the algorithm, None if there is none.

        A token without a key id is checked with the set's only key of the algorithm's kind.
        """
        kind = _KEY_TYPES.get(algorithm[:1]) or _KEY_TYPES.get(algorithm[:2])
        found = [
            each.key
            for each in self._keys
            if each.kind == kind
            and each.algorithm in (None, algorithm)
            and key_id in (None, each.id)
        ]
        return found[0] if len(found) == 1 else None


def _key(fields: dict[str, Any]) -> _Key | None:
    if fields.get("kty") not in _KEY_TYPES.values() or fields.get("use", "sig") != "sig":
        return None
    public = {name: each for name, each in fields.items() if name not in _PRIVATE}
    try:
        key = jwt.PyJWK(public).key
    except jwt.PyJWTError:
        return None  # a kind of key that is not supported
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        return None
    return _Key(fields.get("kid"), fields["kty"], fields.get("alg"), key)


class IssuerKeys(Protocol):
    """The current keys of an issuer."""

    @property
    def keys(self) -> KeySet | None:
        """The keys; None if none have been read yet. A change is another object."""

    async def refresh(self) -> None:
        """Reads the keys again, if that is possible and allowed now."""


class KeyFile:
    """Keys from a file, which is read again when it changes. Raises FilesInvalid."""

    def __init__(self, path: Path) -> None:
        self.keys: KeySet | None = None
        self.files = WatchedFiles({_SETTING: path}, self._load)

    async def refresh(self) -> None:
        """Does nothing: the file is watched."""

    def _load(self, contents: Contents) -> None:
        try:
            self.keys = KeySet(contents[_SETTING])
        except ValueError as error:
            raise ValueError(f"{_SETTING}: {error}") from None


class KeyUrl:
    """Keys from a URL, which `run` fetches: at the start, every five minutes, and when asked.

    Between two fetches there are at least `rest_seconds`, so that tokens with invented key ids
    cannot cause many. While a fetch fails, the last keys stay in use.
    """

    def __init__(
        self,
        url: str,
        ca_file: Path | None,
        token_file: Path | None,
        rest_seconds: float = _REST_SECONDS,
    ) -> None:
        self.keys: KeySet | None = None
        self._url = url
        self._ca_file = ca_file
        self._token_file = token_file
        self._rest_seconds = rest_seconds
        self._content = b""
        self._fetching = asyncio.Lock()
        self._is_up = True
        self._is_resting = False
        self._wanted = asyncio.Event()
        self._fetched = asyncio.Event()

    async def run(self) -> None:
        """Fetches the keys until it is cancelled."""
        while True:
            self._is_resting = False
            self._wanted.clear()
            async with self._fetching:
                await self._fetch()
            self._is_resting = True
            self._fetched.set()
            self._fetched = asyncio.Event()
            await asyncio.sleep(self._rest_seconds)
            self._is_resting = False
            if self.keys:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_REFRESH_SECONDS):
                        await self._wanted.wait()

    async def refresh(self) -> None:
        """Asks for a fetch and waits for its end, but not if the last one has just been."""
        self._wanted.set()
        if not self._is_resting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * _FETCH_SECONDS):
                    await self._fetched.wait()

    async def reload(self) -> Sequence[ReloadedSecret]:
        """See `SecretSource.reload`. It also reads the files for the fetch again."""
        async with self._fetching:
            before = self._content
            error = await self._fetch()
        outcome = SecretOutcome.UNCHANGED if self._content == before else SecretOutcome.TAKEN
        outcome = SecretOutcome.REFUSED if error else outcome
        return [ReloadedSecret(_URL_SETTING, self._url, outcome, error)]

    async def _fetch(self) -> str:
        """Fetches the keys; returns why that failed, or an empty text."""
        try:
            context, headers = await asyncio.to_thread(self._prepare)
            async with (
                asyncio.timeout(_FETCH_SECONDS),
                httpx.AsyncClient(verify=context, timeout=_FETCH_SECONDS) as client,
                client.stream("GET", self._url, headers=headers) as response,
            ):
                content = await _body(response)
            if content != self._content:
                self.keys, self._content = KeySet(content), content
        except (OSError, ValueError, httpx.HTTPError) as error:
            reason = str(error) or type(error).__name__
            if self._is_up:
                _log.error(  # the cause is in the message
                    "the keys of JWTs cannot be fetched; the last ones stay in use",
                    extra={"url": self._url, "reason": reason},
                )
            self._is_up = False
            return reason
        if not self._is_up:
            _log.info("the keys of JWTs are fetched again", extra={"url": self._url})
        self._is_up = True
        return ""

    def _prepare(self) -> tuple[ssl.SSLContext, dict[str, str]]:
        """Reads the files for a fetch, as both may have been renewed."""
        context = ssl.create_default_context(cafile=self._ca_file)
        if self._token_file is None:
            return context, {}
        return context, {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}


async def _body(response: httpx.Response) -> bytes:
    if response.status_code != 200:  # a redirect is not followed
        raise ValueError(f"HTTP status {response.status_code}")
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > _MAX_BYTES:
            raise ValueError(f"the answer is larger than {_MAX_BYTES} bytes")
    return bytes(content)
