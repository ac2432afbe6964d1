"""Runs the embedded engine's child process on a loopback port and without an API key.

`hearth-llm` needs this, as it supports neither Unix sockets nor keys. The child reads all other
parameters from standard input, as usual: `python -m bench.llama_on_port PARENT_PID PORT`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ruvd.engines.llama import child


def main() -> None:
    # The library reads this when it is loaded, which the child does after reading its settings.
    os.environ.setdefault("GOMP_SPINCOUNT", child._SPIN_COUNT)  # noqa: SLF001  the same value as the child
    import xllamacpp  # noqa: PLC0415

    serve = xllamacpp.Server

    def serve_on_port(params: Any) -> Any:
        params.hostnames = ["127.0.0.1"]
        params.port = int(sys.argv[2])
        params.api_keys = []
        return serve(params)

    xllamacpp.Server = serve_on_port
    child.main()


if __name__ == "__main__":
    main()
