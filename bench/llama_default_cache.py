"""Runs the embedded engine's child with llama.cpp's own default for its prompt cache, 8 GiB.

The daemon turns that cache off, as it keeps the state of its slots in files. A server that is used
without the daemon has it. The child reads all other parameters from standard input, as usual:
`python -m bench.llama_default_cache PARENT_PID`.
"""

from __future__ import annotations

import os
from typing import Any

from ruvd.engines.llama import child

_CACHE_MIB = 8192


def main() -> None:
    # The library reads this when it is loaded, which the child does after reading its settings.
    os.environ.setdefault("GOMP_SPINCOUNT", child._SPIN_COUNT)  # noqa: SLF001  the same value as the child
    import xllamacpp  # noqa: PLC0415

    serve = xllamacpp.Server

    def serve_with_cache(params: Any) -> Any:
        params.cache_ram_mib = _CACHE_MIB
        return serve(params)

    xllamacpp.Server = serve_with_cache
    child.main()


if __name__ == "__main__":
    main()
