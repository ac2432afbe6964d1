"""Sealed files: a file is encrypted in segments, each of which is authenticated by itself.

A file has a data key of its own, which its header holds, sealed with a key of the operator's. As no
other content is sealed with that key, a segment's nonce is its number and whether it is the last
one: segments can be neither exchanged nor left out, nor can the file be cut (the STREAM
construction, https://eprint.iacr.org/2015/189). To delete the file is to destroy its key.
"""

import secrets
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ruvd.sealing.aead import KEY_BYTES, NONCE_BYTES, SealBroken
from ruvd.sealing.keys import KeyRing, WrappedKey

_MAGIC = b"ruvd sealed file 1\n"
_SEGMENT_BYTES = 1 << 20
_TAG_BYTES = 16
_ID_LENGTH_BYTES, _KEY_LENGTH_BYTES = 1, 2


def seal_file(source: BinaryIO, target: BinaryIO, ring: KeyRing, context: bytes) -> None:
    """Writes the sealed content of `source` to `target`. The context is needed to open it."""
    secret = secrets.token_bytes(KEY_BYTES)
    wrapped = ring.wrap(secret, b"file " + context)
    key_id = wrapped.key_id.encode()
    header = _MAGIC + len(key_id).to_bytes(_ID_LENGTH_BYTES) + key_id
    target.write(header + len(wrapped.sealed).to_bytes(_KEY_LENGTH_BYTES) + wrapped.sealed)
    aead = AESGCM(secret)
    number, segment = 0, source.read(_SEGMENT_BYTES)
    while True:
        following = source.read(_SEGMENT_BYTES)
        target.write(aead.encrypt(_nonce(number, is_last=not following), segment, None))
        if not following:
            return
        number, segment = number + 1, following


def open_file(source: BinaryIO, target: BinaryIO, ring: KeyRing, context: bytes) -> None:
    """Writes the content of a sealed file to `target`.

    Raises SealBroken or KeyMissing; what it has written until then is a part of the content.
    """
    if source.read(len(_MAGIC)) != _MAGIC:
        raise SealBroken("it is not a sealed file")
    key_id = source.read(int.from_bytes(source.read(_ID_LENGTH_BYTES))).decode(errors="replace")
    sealed = source.read(int.from_bytes(source.read(_KEY_LENGTH_BYTES)))
    aead = AESGCM(ring.unwrap(WrappedKey(key_id, sealed), b"file " + context))
    number, segment = 0, source.read(_SEGMENT_BYTES + _TAG_BYTES)
    while True:
        following = source.read(_SEGMENT_BYTES + _TAG_BYTES)
        try:
            target.write(aead.decrypt(_nonce(number, is_last=not following), segment, None))
        except InvalidTag:
            raise SealBroken("a sealed file was changed or cut") from None
        if not following:
            return
        number, segment = number + 1, following


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(NONCE_BYTES - 1) + bytes([is_last])
