"""A model's control tokens and chat template, read from the metadata of its GGUF file.

The server does not report which tokens are control tokens. The format is described in
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the library gguf needs numpy.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_KEYS = 1 << 16
_MAX_VALUES = 1 << 24
_MAX_BYTES = 1 << 26
_STRING, _ARRAY = 8, 9
_SIZES: Mapping[int, int] = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_TEMPLATE = "tokenizer.chat_template"
_CONTROL, _USER_DEFINED = 3, 4


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens that the tokenizer finds in any text: `control` tokens, and `user_defined` ones, which
    may be markers of the template or common texts, such as HTML's tags."""

    control: tuple[str, ...] = ()
    user_defined: tuple[str, ...] = ()
    template: str = ""


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads a model's vocabulary. Blocks. Raises ValueError or OSError if it cannot be read."""
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError("it is no GGUF file")
        version, _, keys = _unpack(file, "<IQQ")
        if version not in _VERSIONS or keys > _MAX_KEYS:
            raise ValueError(f"its version {version} is unknown")
        found: dict[str, Any] = {}
        for _ in range(keys):
            name = _string(file).decode()
            (kind,) = _unpack(file, "<I")
            value = _value(file, kind)
            if name in (_TOKENS, _TYPES, _TEMPLATE):
                found[name] = value
    tokens, types = found.get(_TOKENS, []), found.get(_TYPES, b"")
    by_type: dict[int, list[str]] = {_CONTROL: [], _USER_DEFINED: []}
    for token, (kind,) in zip(tokens, struct.iter_unpack("<i", types), strict=False):
        if kind in by_type:
            by_type[kind].append(token.decode(errors="replace"))
    template = found.get(_TEMPLATE, b"").decode(errors="replace")
    return Vocabulary(tuple(by_type[_CONTROL]), tuple(by_type[_USER_DEFINED]), template)


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, _exactly(file, struct.calcsize(layout)))


def _exactly(file: BinaryIO, size: int) -> bytes:
    if size > _MAX_BYTES or len(data := file.read(size)) < size:
        raise ValueError("its metadata is cut")
    return data


def _string(file: BinaryIO) -> bytes:
    return _exactly(file, _unpack(file, "<Q")[0])


def _value(file: BinaryIO, kind: int) -> Any:
    """Reads a value: a list of strings, or else the bytes as they are."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _exactly(file, _size(kind))
    inner, count = _unpack(file, "<IQ")
    if count > _MAX_VALUES:
        raise ValueError("its metadata has too many values")
    if inner in (_STRING, _ARRAY):
        read: Callable[[], Any] = (
            (lambda: _string(file)) if inner == _STRING else (lambda: _value(file, inner))
        )
        return [read() for _ in range(count)]
    return _exactly(file, count * _size(inner))


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise ValueError(f"its metadata has values of the unknown type {kind}")
    return _SIZES[kind]
