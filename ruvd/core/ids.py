"""Ids that nobody guesses."""

from __future__ import annotations

import base64
import secrets

_BYTES = 18
# As many ids as one request to the kernel makes; it takes longer than all else that an id needs.
_AT_ONCE = 64

_left = bytearray()


def unguessable() -> str:
    """144 random bits as 24 characters of A-Z a-z 0-9 _ -."""
    if not _left:
        _left.extend(secrets.token_bytes(_BYTES * _AT_ONCE))
    taken = bytes(_left[:_BYTES])
    del _left[:_BYTES]
    return base64.urlsafe_b64encode(taken).decode()
