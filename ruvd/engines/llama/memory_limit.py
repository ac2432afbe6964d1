"""The memory limit of the engine's process.

The kernel has no limit on resident memory, and one on addresses (RLIMIT_AS) would hit the mapped
model file. RLIMIT_DATA limits private writable memory, of which the process has much more than it
uses: 605 MB when it is up with the default settings, of which 400 MB are resident. So the limit is
set once the process is up and has allocated its buffers: it may grow by what is left. A process
that needs more fails to allocate. It refuses the request or aborts, and is replaced.
"""

import sys
from pathlib import Path

if sys.platform == "linux":
    import resource

# How much the process may grow if there is no control group to fit into.
DEFAULT_GROWTH_BYTES = 2 << 30
# For the stacks of threads that are started later, of which little is resident.
_SLACK_BYTES = 64 << 20
_KIBIBYTE = 1 << 10
_SIGNS = ("bad_alloc", "failed to allocate", "out of memory", "cannot allocate memory")


def limit_memory(pid: int, max_bytes: int | None) -> None:
    """Lets a process that is up use `max_bytes`, None for DEFAULT_GROWTH_BYTES more than it uses.

    A process that uses more already may grow by a little, as it would fail at once otherwise. Only
    Linux can limit another process. Blocks. Raises OSError if the system does not let us.
    """
    if sys.platform == "linux":
        text = Path(f"/proc/{pid}/status").read_text()
        sizes = dict(line.split(":", 1) for line in text.splitlines())
        if "VmData" not in sizes:
            raise ProcessLookupError(f"the process {pid} has ended")
        data, resident = (int(sizes[name].split()[0]) * _KIBIBYTE for name in ("VmData", "RssAnon"))
        growth = DEFAULT_GROWTH_BYTES if max_bytes is None else max(0, max_bytes - resident)
        most = data + growth + _SLACK_BYTES
        _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))


def says_out_of_memory(line: str) -> bool:
    """Returns whether a line of output says that memory could not be allocated."""
    lower = line.lower()
    return any(sign in lower for sign in _SIGNS)
