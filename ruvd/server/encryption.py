"""The operator's keys for what the daemon stores, and what else has to hold with them.

A core dump would hold conversations and keys in plain, so with a key there are none.
"""

import logging
import resource
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ruvd.config.loader import Settings
from ruvd.rpc.watched_files import Contents, WatchedFiles

if TYPE_CHECKING:
    from ruvd.sealing.keys import OperatorKeys

_log = logging.getLogger("ruvd.daemon")

_SETTING = "encryption_key_file"
_OTHERS = 0o007
# Linux also dumps no core to a program with a limit of 1, unlike with 0; no file is that small.
_CORE_BYTES = 1


@dataclass(frozen=True, slots=True)
class Encryption:
    """The operator's keys, None without a key file, and the files that have to be watched."""

    keys: "OperatorKeys | None" = None
    files: tuple[WatchedFiles, ...] = ()


def build_encryption(settings: Settings) -> Encryption:
    """Reads the key file, if there is one, and turns core dumps off then. Blocks.

    The engine's process inherits that. Raises FilesInvalid if the file cannot be used.
    """
    path = settings.encryption_key_file
    if path is None:
        return Encryption()
    from ruvd.sealing.keys import OperatorKeys, parse_keys

    keys: OperatorKeys | None = None

    def load(contents: Contents) -> None:
        nonlocal keys
        ring = parse_keys(contents[_SETTING])
        _report_mode(path)
        if keys is None:
            keys = OperatorKeys(ring)
        else:
            keys.replace(ring)

    files = WatchedFiles({_SETTING: path}, load)
    assert keys is not None  # noqa: S101 - or WatchedFiles has raised FilesInvalid
    resource.setrlimit(resource.RLIMIT_CORE, (_CORE_BYTES, _CORE_BYTES))
    return Encryption(keys, (files,))


def _report_mode(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        _log.warning(
            "key file open to other users",
            extra={"path": str(path), "mode": f"{mode:04o}", "remedy": f"chmod o= {path}"},
        )
