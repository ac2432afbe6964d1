"""Seals: files with the checksums of state files, by which a later daemon knows and checks them."""

from collections.abc import Iterator

import msgspec

from ruvd.engines.llama.state import State, with_suffix
from ruvd.engines.llama.state_directory import SEAL, STATE, StateDirectory


class _Seal(msgspec.Struct):
    """The description of a state file for a later daemon.

    `model` is `StateFiles.fingerprint`, and whether states are encrypted.
    """

    model: str
    session: str
    size_bytes: int
    sha256: str


def write_seal(directory: StateDirectory, state: State, model: str) -> None:
    """Seals the file of a state for a later daemon. Blocks. Raises OSError."""
    checksum = directory.sha256(state.name)
    seal = _Seal(model, state.session_key, state.size_bytes, checksum)
    directory.write(with_suffix(state.name, SEAL), msgspec.json.encode(seal))
    state.sealed = True


def sealed_states(directory: StateDirectory, model: str) -> Iterator[State | str]:
    """Yields the states that an earlier daemon has sealed, the oldest first.

    Of one that cannot be used it yields the reason instead: `corrupt`, or `foreign` if the seal is
    of another `model`. Blocks. Raises OSError.
    """
    seals = [name for name in directory.names() if name.endswith(SEAL)]
    for seal_name in sorted(seals, key=directory.age):
        name = with_suffix(seal_name, STATE)
        try:
            seal = msgspec.json.decode(directory.read(seal_name), type=_Seal)
            size = directory.size(name)
        except (OSError, msgspec.MsgspecError):
            yield "corrupt"
            continue
        if seal.model != model:
            yield "foreign"
        elif seal.size_bytes != size:
            yield "corrupt"
        else:
            yield State(name, None, seal.session, size, sealed=True, sha256=seal.sha256)
