"""Starts the third-party gateways that `bench/relay.py` measures, in front of the mock upstream.

Each gateway has an environment of its own (`bench/environments.py`), an empty home directory and
none of the caller's variables, so that it cannot read the caller's credentials: releases of LiteLLM
have been compromised before (1.82.7, 1.82.8, 1.107.0). Each runs with its default settings and
database, but logs errors only and checks no API key.

litellm    LiteLLM's proxy with one worker; it does not fetch model prices from the network
smg        the Shepherd Model Gateway, written in Rust, which grew out of SGLang's router
agentic    vLLM's stateful gateway of the Responses API, written in Rust, with its SQLite store
vllm       vLLM's router, written in Rust, which passes requests on
nginx      a reverse proxy without buffering, with one worker process for each core: a bound of what
           passing bytes on costs. It is not installed from a list: Debian's package `nginx-light`
ferrogw    Ferro Labs' gateway, a static binary in Go. It always listens on all interfaces, so its
           administration API has a random key; all that it serves is the mock.
"""

from __future__ import annotations

import json
import secrets
import shutil
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
    """Runs LiteLLM's proxy with its default server and HTTP client (aiohttp); yields its port."""
    port = free_port()
    config = folder / "litellm.json"  # JSON is YAML
    config.write_text(json.dumps(_litellm_config(mock_port)))
    env = {
        **_bare_environment("litellm", folder, environment),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        # It listens on loopback only, and checking a key would cost it time.
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
async def smg(
    folder: Path, environment: Path, mock_port: int, postgres_url: str = ""
) -> AsyncIterator[tuple[Server, int]]:
    """Runs the Shepherd Model Gateway and yields its port.

    Its history is in memory, which is its default, or in the database of `postgres_url`.
    """
    port, metrics_port = free_port(), free_port()
    history: tuple[str, ...] = ("memory",)
    if postgres_url:
        history = ("postgres", "--postgres-db-url", postgres_url)
    command = (
        str(environment / "bin" / "smg"), "launch", "--backend", "openai",
        "--worker-urls", f"http://127.0.0.1:{mock_port}", "--history-backend", *history,
        "--host", "127.0.0.1", "--port", str(port),
        "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port),
        "--log-level", "error", "--shutdown-grace-period-secs", "1",
    )  # fmt: skip
    name = "smg-postgres" if postgres_url else "smg"
    env = _bare_environment(name, folder, environment)
    async with running(name, folder, *command, env=env) as server:
        # It answers with 503 until it has found the mock.
        await until_answering(server, port, "/readiness")
        yield server, port


@asynccontextmanager
async def ferrogw(
    folder: Path, environment: Path, mock_port: int
) -> AsyncIterator[tuple[Server, int]]:
    """Runs Ferro Labs' gateway with the mock as its provider `openai`; yields its port."""
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
        "RATE_LIMIT_RPS": "0",  # its default limits the calls of a client
    }
    command = (str(environment / "bin" / "ferrogw"), "serve")
    async with running("ferrogw", folder, *command, env=env) as server:
        await until_answering(server, port, "/health")
        yield server, port


@asynccontextmanager
async def agentic(
    folder: Path, environment: Path, mock_port: int
) -> AsyncIterator[tuple[Server, int]]:
    """Runs vLLM's stateful gateway on an SQLite database and yields its port."""
    port = free_port()
    command = (
        str(environment / "bin" / "agentic-server"),
        "--llm-api-base", f"http://127.0.0.1:{mock_port}", "--openai-api-key", "none",
        "--gateway-host", "127.0.0.1", "--gateway-port", str(port), "--skip-llm-ready-check",
        "--db-url", f"sqlite://{folder / 'agentic.db'}?mode=rwc",
    )  # fmt: skip
    env = {**_bare_environment("agentic", folder, environment), "RUST_LOG": "error"}
    async with running("agentic", folder, *command, env=env) as server:
        await until_answering(server, port, "/health")
        yield server, port


@asynccontextmanager
async def vllm(
    folder: Path, environment: Path, mock_port: int
) -> AsyncIterator[tuple[Server, int]]:
    """Runs vLLM's router and yields its port."""
    port, metrics_port = free_port(), free_port()
    command = (
        str(environment / "bin" / "vllm-router"),
        "--worker-urls", f"http://127.0.0.1:{mock_port}", "--log-level", "error",
        "--host", "127.0.0.1", "--port", str(port),
        "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port),
    )  # fmt: skip
    env = _bare_environment("vllm", folder, environment)
    async with running("vllm", folder, *command, env=env) as server:
        await until_answering(server, port, "/readiness")
        yield server, port


_NGINX = """
daemon off; worker_processes auto; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/nginx-body; proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-1; uwsgi_temp_path {folder}/nginx-2;
  scgi_temp_path {folder}/nginx-3; keepalive_requests 1000000;
  upstream mock {{
    server 127.0.0.1:{mock_port}; keepalive 512; keepalive_requests 1000000;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


@asynccontextmanager
async def nginx(
    folder: Path, _environment: Path, mock_port: int
) -> AsyncIterator[tuple[Server, int]]:
    """Runs nginx and yields its port. Raises OSError if it is not installed."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, mock_port=mock_port))
    if not (program := shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")):
        raise FileNotFoundError("nginx is not installed (Debian's package nginx-light)")
    command = (program, "-p", str(folder), "-e", "stderr", "-c", str(config))
    async with running("nginx", folder, *command, env={"PATH": "/usr/bin:/bin"}) as server:
        await until_answering(server, port, "/v1/models")
        yield server, port


def _bare_environment(name: str, folder: Path, environment: Path) -> dict[str, str]:
    """Returns variables for a gateway, without any of the caller's."""
    home = folder / f"{name}-home"
    home.mkdir(exist_ok=True)
    return {
        "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
        "HOME": str(home),
        "NO_PROXY": "*",
    }


GATEWAYS: dict[
    str, Callable[[Path, Path, int], AbstractAsyncContextManager[tuple[Server, int]]]
] = {
    "litellm": litellm,
    "smg": smg,
    "agentic": agentic,
    "vllm": vllm,
    "ferrogw": ferrogw,
    "nginx": nginx,
}
# The packages of their environments, whose versions are reported. The others are Debian's.
PACKAGES = {
    "litellm": "litellm",
    "smg": "smg",
    "agentic": "agentic-api",
    "vllm": "vllm-router",
    "ferrogw": "ferrogw",
}
