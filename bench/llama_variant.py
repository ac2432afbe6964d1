"""Runs the embedded engine's child with other parameters, for `bench.engine_options`.

The variable BENCH_LLAMA_VARIANT has them as JSON: `flash` turns flash attention on, `speculation`
is the name of one of llama.cpp's kinds of n-gram speculation. The child reads all other parameters
from standard input, as usual: `python -m bench.llama_variant PARENT_PID`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ruvd.engines.llama import child

VARIABLE = "BENCH_LLAMA_VARIANT"


def main() -> None:
    # The library reads this when it is loaded, which the child does after reading its settings.
    os.environ.setdefault("GOMP_SPINCOUNT", child._SPIN_COUNT)  # noqa: SLF001  the same value as the child
    import xllamacpp  # noqa: PLC0415

    variant = json.loads(os.environ[VARIABLE])
    serve = xllamacpp.Server

    def serve_variant(params: Any) -> Any:
        if variant.get("flash"):
            kind = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
            params.flash_attn_type = kind
        if name := variant.get("speculation"):
            kinds = xllamacpp.common_speculative_type
            params.speculative.types = [kinds[f"COMMON_SPECULATIVE_TYPE_{name.upper()}"]]
        return serve(params)

    xllamacpp.Server = serve_variant
    child.main()


if __name__ == "__main__":
    main()
