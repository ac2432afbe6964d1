"""The properties of a SQLite store that decide what a stored turn survives."""

from pathlib import Path

from ruvd.core.ports.diagnosis import Finding
from ruvd.stores.sqlite.database import Durability

_MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = ("tmpfs", "ramfs")
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "lustre", "fuse.sshfs")


def diagnose(path: Path, durability: Durability, mounts: Path = _MOUNTS) -> list[Finding]:
    """Returns the findings about a store at this path. Blocks."""
    found = [
        Finding("durability", durability, "a Finished survives a power cut")
        if durability == "full"
        else Finding(
            "durability",
            durability,
            "a Finished survives a killed daemon; a power cut may lose the last turns",
        )
    ]
    kind = _file_system(path, mounts)
    if kind in _IN_MEMORY:
        meaning = "all sessions are lost when the machine or the container ends"
        found.append(Finding("file system", kind, meaning, is_risk=True))
    elif kind in _REMOTE:
        meaning = "SQLite's locks and shared memory do not work over a network: use a local disk"
        found.append(Finding("file system", kind, meaning, is_risk=True))
    elif kind:
        found.append(Finding("file system", kind, "nothing is known against it"))
    return found


def _file_system(path: Path, mounts: Path) -> str:
    """Returns the type of the file system that the path is on, or nothing if it is unknown."""
    place = path.resolve()
    best, kind = -1, ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        mount, _, source = line.partition(" - ")
        # A space in a path is written as an octal number.
        point = mount.split()[4].replace("\\040", " ")
        if place.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), source.split()[0]
    return kind
