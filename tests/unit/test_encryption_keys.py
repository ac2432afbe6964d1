"""Key files and sealed values: what they accept, what they refuse, and what they never show."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from ruvd.sealing.aead import OVERHEAD_BYTES, AeadKey, SealBroken
from ruvd.sealing.keys import KeyMissing, KeyRing, OperatorKeys, WrappedKey, add_key, parse_keys

A, B = bytes(range(32)), bytes(range(1, 33))


def line(key_id: str, secret: bytes) -> bytes:
    return f"{key_id}:{base64.b64encode(secret).decode()}\n".encode()


def test_a_file_has_keys_in_base64_and_hex_and_the_first_is_current() -> None:
    content = b"# ours\n\n" + line("new", A) + f"old:{B.hex()} created=today\n".encode()
    ring = parse_keys(content)
    assert (ring.current_id, ring.ids) == ("new", ("new", "old"))
    assert ring.unwrap(KeyRing({"old": B}).wrap(b"data", b"here"), b"here") == b"data"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no key"),
        (b"# nothing\n", "has no key"),
        (base64.b64encode(A), "line 1: is not ID:KEY"),
        (b"a/b:" + A.hex().encode(), "line 1: is not ID:KEY"),
        (b"a:" + base64.b64encode(A[:31]), "line 1: the key a is not 32 bytes"),
        (b"a:" + A.hex().encode()[:-1], "line 1: the key a is not 32 bytes"),
        (b"a:", "line 1: the key a is not 32 bytes"),
        (line("a", A) + line("a", B), "line 2: the key a is on another line"),
        (line("a", A) + line("b", A), "line 2: the key b is on another line"),
    ],
)
def test_a_wrong_file_is_refused_and_the_message_shows_no_key(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^encryption_key_file: .*{message}") as caught:
        parse_keys(content)
    assert A.hex()[:16] not in str(caught.value)
    assert base64.b64encode(A).decode()[:16] not in str(caught.value)


def test_a_made_key_is_put_first_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first = add_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    second = add_key(path, "mine")
    assert second == "mine"
    assert parse_keys(path.read_bytes()).ids == ("mine", first)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    with pytest.raises(ValueError, match="on another line"):
        add_key(path, first)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_sealed_content_opens_only_unchanged_and_in_its_context() -> None:
    key = AeadKey(A)
    sealed = key.seal(b"content", b"here")
    assert len(sealed) == len(b"content") + OVERHEAD_BYTES
    assert key.open(sealed, b"here") == b"content"
    assert key.seal(b"content", b"here") != sealed
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(SealBroken):
            key.open(bytes(changed), b"here")
    for wrong in (sealed[:-1], sealed + b"0", b""):
        with pytest.raises(SealBroken):
            key.open(wrong, b"here")
    with pytest.raises(SealBroken):
        key.open(sealed, b"there")
    with pytest.raises(SealBroken):
        AeadKey(B).open(sealed, b"here")


def test_a_data_key_opens_only_with_the_key_and_the_id_that_wrapped_it() -> None:
    wrapped = KeyRing({"a": A}).wrap(b"data", b"here")
    with pytest.raises(KeyMissing):
        KeyRing({"b": B}).unwrap(wrapped, b"here")
    with pytest.raises(SealBroken):
        KeyRing({"a": B}).unwrap(wrapped, b"here")
    with pytest.raises(SealBroken):
        KeyRing({"b": A}).unwrap(WrappedKey("b", wrapped.sealed), b"here")


def test_a_key_that_is_taken_out_of_the_file_stays_in_use_until_a_restart() -> None:
    keys = OperatorKeys(KeyRing({"a": A}))
    wrapped = keys.ring.wrap(b"data", b"here")
    keys.replace(KeyRing({"b": B}))
    assert keys.ring.current_id == "b"
    assert keys.ring.unwrap(wrapped, b"here") == b"data"
