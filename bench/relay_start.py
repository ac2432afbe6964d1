"""Starts the servers of `bench/relay.py` with their clients. What cannot be had is left out."""

from __future__ import annotations

import argparse
from contextlib import AsyncExitStack
from pathlib import Path

from bench import environments, go_programs
from bench import relay_servers as servers
from bench.mock_upstream import POD_MODEL, POD_TOKENS
from bench.relay_clients import (
    Client,
    GrpcClient,
    HistoryClient,
    HttpClient,
    ResponsesClient,
    closing,
)
from bench.relay_gateways import GATEWAYS, PACKAGES
from bench.relay_report import TITLES
from bench.relay_targets import Target
from bench.runner import log_progress

# Targets that use the process of another target.
_PROCESSES = {"smg-history": "smg", "ferrogw-told": "ferrogw", "go-sessions": "go"}
_CLIENTS = {
    "smg-history": ResponsesClient,
    "agentic": ResponsesClient,
    "ferrogw-told": HistoryClient,
}
# Enough for the largest case with sessions; all other settings have their defaults.
_MAX_SESSIONS = ("--max-sessions", "1000")


async def _environment_of(
    options: argparse.Namespace, name: str, left_out: dict[str, str]
) -> Path | None:
    """Returns a gateway's environment, made if necessary.

    Returns None and notes the reason in `left_out` if there is none.
    """
    folder: Path = (options.environments / name).absolute()
    if name not in PACKAGES:
        return folder
    if name == "litellm" and options.litellm_env:
        folder = options.litellm_env.absolute()
    if options.installed_only and not environments.is_installed(name, folder):
        left_out[name] = "not installed"
        return None
    try:
        await environments.install(name, folder)
    except environments.NotInstalled as failure:
        left_out[name] = str(failure)
        return None
    return folder


async def start(
    options: argparse.Namespace, folder: Path, stack: AsyncExitStack, left_out: dict[str, str]
) -> list[Target]:
    """Starts all selected servers before the first is measured, and warms them up."""
    http = await _start_http(options, folder, stack, left_out)
    _, port = http["mock"]
    targets = []
    grpc_servers: dict[str, tuple[servers.Server, str]] = {}
    for name in options.only:
        process = _PROCESSES.get(name, name)
        if process not in http and process not in GATEWAYS and process not in grpc_servers:
            try:
                grpc_servers[process] = await _start_grpc(options, name, folder, port, stack)
            except environments.NotInstalled as failure:
                left_out[process] = str(failure)
        if process in http:
            server, server_port = http[process]
            clients = _http_clients(options, name, server_port)
        elif process in grpc_servers:
            server, address = grpc_servers[process]
            clients = _grpc_clients(options, name, address)
        else:
            log_progress(f"{TITLES[name]} is left out: {left_out[process]}")
            continue
        for client in clients:
            await stack.enter_async_context(closing(client))
        targets.append(Target(name, server, *clients))
    for target in targets:
        await target.warm()
    return targets


async def _start_http(
    options: argparse.Namespace, folder: Path, stack: AsyncExitStack, left_out: dict[str, str]
) -> dict[str, tuple[servers.Server, int]]:
    """Starts the mock and the selected gateways, and returns their ports."""
    wanted = list(dict.fromkeys(_PROCESSES.get(name, name) for name in options.only))
    found = {
        name: await _environment_of(options, name, left_out) for name in wanted if name in GATEWAYS
    }
    log_progress(f"starting {', '.join(options.only)}")
    mock, port = await stack.enter_async_context(
        servers.mock(
            folder, tokens=options.tokens, first_ms=options.first_ms, token_ms=options.token_ms
        )
    )
    await servers.until_answering(mock, port, "/v1/models")
    http = {"mock": (mock, port)}
    for name, environment in found.items():
        if environment is None:
            continue
        try:
            http[name] = await stack.enter_async_context(GATEWAYS[name](folder, environment, port))
        except (servers.Failed, OSError) as failure:
            left_out[name] = str(failure).splitlines()[0]
    return http


def _http_clients(options: argparse.Namespace, name: str, port: int) -> tuple[Client, Client]:
    """Returns the client of most cases, and that of the pod's."""
    made = _CLIENTS.get(name, HttpClient)
    return made(port, options.tokens), made(port, POD_TOKENS, paced_model=POD_MODEL)


def _grpc_clients(options: argparse.Namespace, name: str, address: str) -> tuple[Client, Client]:
    """Returns the client of most cases, and that of the pod's."""
    sessions = "sessions" in name
    return (
        GrpcClient(address, options.tokens, sessions=sessions),
        GrpcClient(address, POD_TOKENS, sessions=sessions, paced_model=POD_MODEL),
    )


async def _start_grpc(
    options: argparse.Namespace, name: str, folder: Path, port: int, stack: AsyncExitStack
) -> tuple[servers.Server, str]:
    """Starts a relay that serves ruvd's API and returns its process and address."""
    if name == "naive":
        server, address = await stack.enter_async_context(servers.naive(folder, port))
        await servers.until_serving(server, address, service=None)
        return server, address
    if name == "grpc":
        server, address = await stack.enter_async_context(servers.bare_grpc(folder, options.tokens))
        await servers.until_serving(server, address, service=None)
        return server, address
    if _PROCESSES.get(name, name) == "go":
        program = await go_programs.build() / "server"
        server, address = await stack.enter_async_context(servers.go(program, folder, port))
        await servers.until_serving(server, address, service="readiness")
        return server, address
    daemon = servers.ruvd(
        name,
        folder,
        port,
        store=f"sqlite:{folder / 'sessions.db'}" if name == "sessions" else "memory",
        listen=f"127.0.0.1:{servers.free_port()}" if name == "tcp" else "",
        flags=(*_MAX_SESSIONS, *options.ruvd_flag),
    )
    server, address = await stack.enter_async_context(daemon)
    await servers.until_serving(server, address, service="readiness")
    return server, address
