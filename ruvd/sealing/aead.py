"""Authenticated encryption with AES-256-GCM.

A nonce is 96 random bits. One key may seal 2^32 times until two nonces are equal with a probability
of 2^-32 (NIST SP 800-38D, 8.3). A data key seals a few times a turn and lives as long as a session,
and an operator's key seals once a session, so both stay far below. Counters would have to be
stored, and a database that is restored from a backup would count from an old value again, with the
same keys.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
_TAG_BYTES = 16
# The first byte of everything that is sealed, so that another format can be told from this one.
_VERSION = b"\x01"
OVERHEAD_BYTES = len(_VERSION) + NONCE_BYTES + _TAG_BYTES


class SealBroken(ValueError):
    """Sealed content was changed, is in another place than it was sealed for, or is not sealed."""


class AeadKey:
    """A key that seals and opens content, each time for a context.

    The context says what the content is and where it belongs. It is not stored, and content opens
    only with the context that it was sealed with.
    """

    __slots__ = ("_aead",)

    def __init__(self, secret: bytes) -> None:
        self._aead = AESGCM(secret)

    def seal(self, content: bytes, context: bytes) -> bytes:
        """Returns the sealed content, which is OVERHEAD_BYTES longer."""
        nonce = os.urandom(NONCE_BYTES)
        return _VERSION + nonce + self._aead.encrypt(nonce, content, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Returns the content. Raises SealBroken."""
        if len(sealed) < OVERHEAD_BYTES or sealed[:1] != _VERSION:
            raise SealBroken("it is not sealed content")
        start = len(_VERSION) + NONCE_BYTES
        try:
            return self._aead.decrypt(sealed[1:start], sealed[start:], context)
        except InvalidTag:
            raise SealBroken("sealed content was changed or moved") from None
