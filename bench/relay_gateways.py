"""The gateways of other makers that `bench/relay.py` measures, in front of the mock upstream.

Each has an environment of its own (`bench/environments.py`), an empty home and none of the caller's
variables, so that no credential of the caller's is within its reach; releases of LiteLLM have been
compromised before (1.82.7, 1.82.8, 1.107.0). Each runs as it comes, logging errors only, without a
key to check, and with no database but what is its own default.

litellm    LiteLLM's proxy, one worker; does not ask the network for prices
smg        the Shepherd Model Gateway, which came out of SGLang's router: a router in Rust
ferrogw    Ferro Labs' gateway: a static binary in Go. It listens on all interfaces and cannot be
           told otherwise, so its administration is behind a random key; what it serves is the mock.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from bench.mock_upstream import MODEL, PACED_MODEL, POD_MODEL
from bench.relay_servers import Server, free_port, running, until_answering


@asynccontextmanager
async def litellm(
    folder: Path, environment: Path, mock_port: int
) -> AsyncIterator[tuple[Server, int]]:
    """LiteLLM's proxy, and its port: its default server and HTTP client (aiohttp)."""
    port = free_port()
    config = folder / "litellm.json"  # JSON is YAML
    config.write_text(json.dumps(_litellm_config(mock_port)))
    env = {
        **_bare_environment("litellm", folder, environment),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        # Only loopback can reach it, and checking a key would cost it time.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    command = (
        str(environment / "bin" / "litellm"), "--config", str(config),
        "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1",
    )  # fmt: skip
    async with running("litellm", folder, *command, env=env) as server:
        await until_answering(server, port, "/health/liveliness")
        yield server, port


def _litellm_config(mock_port: int) -> dict[str, Any]:
    base_url = f"http://127.0.0.1:{mock_port}/v1"
    return {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": base_url,
                    "api_key": "none",
                },
            }
            for name in (MODEL, PACED_MODEL, POD_MODEL)
        ],
        "litellm_settings": {"telemetry": False, "set_verbose": False},
    }


@asynccontextmanager
async def smg(folder: Path, environment: Path, mock_port: int) -> AsyncIterator[tuple[Server, int]]:
    """The Shepherd Model Gateway, and its port. Its history is in memory, as by default."""
    port, metrics_port = free_port(), free_port()
    command = (
        str(environment / "bin" / "smg"), "launch", "--backend", "openai",
        "--worker-urls", f"http://127.0.0.1:{mock_port}", "--history-backend", "memory",
        "--host", "127.0.0.1", "--port", str(port),
        "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port),
        "--log-level", "error", "--shutdown-grace-period-secs", "1",
    )  # fmt: skip
    env = _bare_environment("smg", folder, environment)
    async with running("smg", folder, *command, env=env) as server:
        # It answers with 503 until it has found its worker.
        await until_answering(server, port, "/readiness")
        yield server, port


@asynccontextmanager
async def ferrogw(
    folder: Path, environment: Path, mock_port: int
) -> AsyncIterator[tuple[Server, int]]:
    """Ferro Labs' gateway, and its port: its provider `openai`, pointed to the mock."""
    port = free_port()
    config = folder / "ferrogw.json"
    target = {"strategy": {"mode": "single"}, "targets": [{"virtual_key": "openai"}]}
    config.write_text(json.dumps(target))
    env = {
        **_bare_environment("ferrogw", folder, environment),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{mock_port}/v1",
        "OPENAI_API_KEY": "none",
        "GATEWAY_CONFIG": str(config),
        "PORT": str(port),
        "LOG_LEVEL": "error",
        "MASTER_KEY": f"fgw_{secrets.token_hex(32)}",
        "ALLOW_UNAUTHENTICATED_PROXY": "true",
        "RATE_LIMIT_RPS": "0",  # by default a client's calls are limited
    }
    command = (str(environment / "bin" / "ferrogw"), "serve")
    async with running("ferrogw", folder, *command, env=env) as server:
        await until_answering(server, port, "/health")
        yield server, port


def _bare_environment(name: str, folder: Path, environment: Path) -> dict[str, str]:
    home = folder / f"{name}-home"
    home.mkdir(exist_ok=True)
    return {
        "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
        "HOME": str(home),
        "NO_PROXY": "*",
    }


GATEWAYS: dict[
    str, Callable[[Path, Path, int], AbstractAsyncContextManager[tuple[Server, int]]]
] = {"litellm": litellm, "smg": smg, "ferrogw": ferrogw}
TITLES = {"litellm": "LiteLLM", "smg": "smg", "ferrogw": "ferrogw"}
