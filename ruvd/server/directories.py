"""Reports directories of sockets and of the store that more users can enter than need to.

They are left as they are, because others may use them too. ruvd makes its own directories private:
0750 for sockets, whose clients may be of its group, and 0700 for the store.
"""

import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruvd.config.loader import Settings

_log = logging.getLogger("ruvd.daemon")
_SOCKET_MODE = 0o750
_STORE_MODE = 0o700


@dataclass(frozen=True, slots=True)
class _Use:
    """A file of ruvd's, the mode that its directory should have, and the setting's prefix."""

    file: Path
    purpose: str
    mode: int
    scheme: str


def report_loose_directories(settings: Settings) -> None:
    """Logs a warning for each directory that is open to more users than it should be. Blocks."""
    uses: dict[Path, _Use] = {}
    for use in _uses(settings):
        known = uses.setdefault(use.file.parent, use)
        if use.mode > known.mode:  # clients have to reach a socket that lies beside the store
            uses[use.file.parent] = use
    for directory, use in uses.items():
        try:
            _report(directory, use, _own_names(directory, _uses(settings)))
        except OSError as error:  # for example, the store's directory could not be made
            _log.debug("the mode of a directory is unknown", extra={"reason": str(error)})


def _uses(settings: Settings) -> Iterator[_Use]:
    if settings.sqlite_path:
        yield _Use(settings.sqlite_path.absolute(), "store", _STORE_MODE, "sqlite:")
    for address in (each.name for each in settings.listeners):
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:")).absolute()
            yield _Use(path, "socket", _SOCKET_MODE, "unix:")
    if settings.admin_socket and not settings.admin_socket_is_default:
        yield _Use(settings.admin_socket.absolute(), "admin socket", _SOCKET_MODE, "unix:")


def _own_names(directory: Path, uses: Iterator[_Use]) -> set[str]:
    """Returns the names in the directory of our files, and of directories with our files."""
    files = (each.file for each in uses if each.file.is_relative_to(directory))
    return {file.relative_to(directory).parts[0] for file in files}


def _report(directory: Path, use: _Use, own_names: set[str]) -> None:
    status = directory.stat()
    mode = stat.S_IMODE(status.st_mode)
    if not mode & 0o777 & ~use.mode:
        return
    fields = {"path": str(directory), "mode": f"{mode:04o}", "purpose": use.purpose}
    is_shared = bool(mode & stat.S_ISVTX) or _has_other_files(directory, own_names)
    if directory.is_mount() and not is_shared:
        # A volume, for example of a pod: whoever mounts it can enter it, whatever its mode is.
        how = "readOnly" if use.purpose == "socket" else "not at all"
        fields["remedy"] = f"mount the volume {how} in other containers"
        _log.info("volume open to other users", extra=fields)
        return
    user = os.geteuid()
    # Others need a directory of root's with other files, such as /run, as it is.
    if mode & stat.S_ISVTX or status.st_uid != user or (is_shared and user == 0):
        own = f"{use.scheme}{directory / 'ruvd' / use.file.name}"
        fields["remedy"] = f"use a directory that ruvd makes: {own}"
    else:
        fields["remedy"] = f"chmod {use.mode:o} {directory}"
    _log.warning("directory open to other users", extra=fields)


def _has_other_files(directory: Path, own_names: set[str]) -> bool:
    with os.scandir(directory) as entries:
        return any(not entry.name.startswith((*own_names, "lost+found")) for entry in entries)
