"""OpenAI's own Python client, which `make openai` installs beside the tests' packages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

# At the end, so that the packages of both are those of the tests.
sys.path.append(str(Path(__file__).parents[1] / "build" / "openai"))
openai = pytest.importorskip("openai", reason="run `make openai`")


def client(base_url: str, api_key: str = "none", **options: Any) -> Any:
    """Returns a client of the API, by default without retries."""
    return openai.AsyncOpenAI(
        base_url=base_url, api_key=api_key, **{"max_retries": 0, "timeout": 60, **options}
    )


__all__ = ["client", "openai"]
