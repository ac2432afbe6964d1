"""The embedded engine's own child, on a loopback port and without a key: for `hearth-llm`.

That takes no Unix socket and sends no key. All other parameters are those of the child, which
reads them from stdin as ever: `python -m bench.llama_on_port PARENT_PID PORT`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ruvd.engines.llama import child


def main() -> None:
    # Read when the library is loaded, and the child loads it only after its settings.
    os.environ.setdefault("GOMP_SPINCOUNT", child._SPIN_COUNT)  # noqa: SLF001  the same
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
