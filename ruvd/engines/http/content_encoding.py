"""Responses whose body is compressed, though the request asked for none.

Proxies compress streams all the same, some without a regard for what was asked. The standard
library decodes gzip and deflate. Any other coding is an error that names it.
"""

import zlib
from typing import Protocol

import httpx

from ruvd.engines.http.transport import Response

# The largest piece that one read returns, whatever a few compressed bytes expand to.
_MAX_PIECE_BYTES = 262_144
_GZIP, _ZLIB, _RAW = 31, 15, -15
_CODINGS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes: ...


def decoded(response: Response) -> Response:
    """Returns the response with its body decoded. Raises httpx.DecodingError for a coding that
    cannot be decoded."""
    header = response.header("content-encoding")
    codings = [coding.strip().lower() for coding in header.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity", "none")]
    if not codings:
        return response
    if len(codings) > 1 or codings[0] not in _CODINGS:
        text = f"the answer is encoded as {header!r}, which was not asked for"
        raise httpx.DecodingError(text)
    return DecodedResponse(response, codings[0])


class DecodedResponse:
    """A response with a body in the coding gzip or deflate."""

    def __init__(self, response: Response, coding: str) -> None:
        self.status = response.status
        self.header = response.header
        self.aclose = response.aclose
        self._response = response
        self._coding = coding
        self._decompressor: _Decompressor | None = None
        self._rest = b""

    @property
    def is_whole(self) -> bool:
        """See `Response.is_whole`."""
        return self._response.is_whole and not self._rest

    async def read(self) -> bytes:
        """See `Response.read`. Raises httpx.DecodingError for a body that is not in the coding."""
        while True:
            if not self._rest:
                self._rest = await self._response.read()
                if not self._rest:
                    self._check_end()
                    return b""
            if part := self._decode():
                return part

    def _decode(self) -> bytes:
        data, self._rest = self._rest, b""
        if self._decompressor is None:
            self._decompressor = zlib.decompressobj(self._window_bits(data))
        try:
            part = self._decompressor.decompress(data, _MAX_PIECE_BYTES)
        except zlib.error as error:
            raise httpx.DecodingError(f"the answer is no {self._coding}: {error}") from None
        self._rest = self._decompressor.unconsumed_tail
        if self._decompressor.eof:  # another member may follow
            self._rest, self._decompressor = self._decompressor.unused_data, None
        return part

    def _window_bits(self, data: bytes) -> int:
        """Returns the format. Some servers send deflate without zlib's header."""
        is_zlib = data[0] & 0x0F == zlib.DEFLATED
        return _RAW if self._coding == "deflate" and not is_zlib else _CODINGS[self._coding]

    def _check_end(self) -> None:
        if self._decompressor is not None:
            raise httpx.DecodingError(f"the answer's {self._coding} was cut before its end")
