"""Sealed files: they open whole and unchanged, with their key and context, or not at all."""

from __future__ import annotations

from io import BytesIO

import pytest

from ruvd.sealing.aead import SealBroken
from ruvd.sealing.files import open_file, seal_file
from ruvd.sealing.keys import KeyMissing, KeyRing

RING = KeyRing({"k": b"k" * 32})
SEGMENT = 1 << 20
TAG = 16


def seal(content: bytes, context: bytes = b"name") -> bytes:
    target = BytesIO()
    seal_file(BytesIO(content), target, RING, context)
    return target.getvalue()


def opened(sealed: bytes, context: bytes = b"name", ring: KeyRing = RING) -> bytes:
    target = BytesIO()
    open_file(BytesIO(sealed), target, ring, context)
    return target.getvalue()


HEADER = len(seal(b"")) - TAG


@pytest.mark.parametrize("size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT])
def test_a_file_of_any_size_opens_as_it_was(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    sealed = seal(content)
    assert opened(sealed) == content
    assert size < 16 or content[:16] not in sealed


def _without_last(sealed: bytes) -> bytes:
    return sealed[: HEADER + 2 * (SEGMENT + TAG)]


def _without_first(sealed: bytes) -> bytes:
    return sealed[:HEADER] + sealed[HEADER + SEGMENT + TAG :]


def _exchanged(sealed: bytes) -> bytes:
    one, two = HEADER + SEGMENT + TAG, HEADER + 2 * (SEGMENT + TAG)
    return sealed[:HEADER] + sealed[one:two] + sealed[HEADER:one] + sealed[two:]


def _longer(sealed: bytes) -> bytes:
    return sealed + sealed[HEADER : HEADER + SEGMENT + TAG]


def _other_key(sealed: bytes) -> bytes:
    return seal(b"")[:HEADER] + sealed[HEADER:]


@pytest.mark.parametrize(
    "change", [_without_last, _without_first, _exchanged, _longer, _other_key, lambda s: s[:-1]]
)
def test_a_file_whose_segments_were_changed_does_not_open(change: object) -> None:
    assert callable(change)
    sealed = seal(b"a" * SEGMENT + b"b" * SEGMENT + b"c" * 100)
    with pytest.raises(SealBroken):
        opened(change(sealed))


@pytest.mark.parametrize("at", [0, 20, 30, HEADER - 1, HEADER, HEADER + 5])
def test_a_file_with_a_changed_byte_does_not_open(at: int) -> None:
    changed = bytearray(seal(b"content"))
    changed[at] ^= 1
    with pytest.raises((SealBroken, KeyMissing)):
        opened(bytes(changed))


def test_a_file_opens_only_with_its_name_and_its_key() -> None:
    sealed = seal(b"content")
    with pytest.raises(SealBroken):
        opened(sealed, b"other")
    with pytest.raises(SealBroken):
        opened(sealed, ring=KeyRing({"k": b"x" * 32}))
    with pytest.raises(KeyMissing):
        opened(sealed, ring=KeyRing({"x": b"x" * 32}))
    assert opened(sealed, ring=KeyRing({"x": b"x" * 32, "k": b"k" * 32})) == b"content"
