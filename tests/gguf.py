"""Rewrites the metadata of a GGUF model: other names of tokens, and another chat template."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

_STRING, _ARRAY, _ALIGNMENT = 8, 9, 32
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def rewrite(source: Path, target: Path, tokens: Mapping[str, str], template: str) -> None:
    """Writes a copy of a model in which `tokens` have new names."""
    with source.open("rb") as old, target.open("wb") as new:
        head = old.read(24)
        new.write(head)
        _, _, tensors, keys = struct.unpack("<4sIQQ", head)
        for _ in range(keys):
            name = _read_string(old)
            _write_string(new, name)
            kind = old.read(4)
            new.write(kind)
            if name == b"tokenizer.chat_template":
                _read_string(old)
                _write_string(new, template.encode())
            elif name == b"tokenizer.ggml.tokens":
                inner = old.read(12)
                new.write(inner)
                for _ in range(struct.unpack("<IQ", inner)[1]):
                    text = _read_string(old).decode()
                    _write_string(new, tokens.get(text, text).encode())
            else:
                new.write(_read_value(old, struct.unpack("<I", kind)[0]))
        for _ in range(tensors):
            _write_string(new, _read_string(old))
            dimensions = old.read(4)
            new.write(dimensions + old.read(8 * struct.unpack("<I", dimensions)[0] + 12))
        old.seek(-old.tell() % _ALIGNMENT, 1)
        new.write(bytes(-new.tell() % _ALIGNMENT))
        shutil.copyfileobj(old, new)


def _read_string(file: BinaryIO) -> bytes:
    return file.read(struct.unpack("<Q", file.read(8))[0])


def _write_string(file: BinaryIO, text: bytes) -> None:
    file.write(struct.pack("<Q", len(text)) + text)


def _read_value(file: BinaryIO, kind: int) -> bytes:
    if kind == _STRING:
        size = file.read(8)
        return size + file.read(struct.unpack("<Q", size)[0])
    if kind == _ARRAY:
        head = file.read(12)
        inner, count = struct.unpack("<IQ", head)
        if inner == _STRING:
            return head + b"".join(_read_value(file, inner) for _ in range(count))
        return head + file.read(count * _SIZES[inner])
    return file.read(_SIZES[kind])
