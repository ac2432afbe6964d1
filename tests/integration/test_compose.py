"""deploy/compose.yaml: read as Docker Compose reads it, and its daemons run against a real server.

Docker is not needed: the variables of each service are those of a process of this machine.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import password_server
import pytest
import yaml  # type: ignore[import-untyped]
from password_server import PASSWORD
from running import RunningDaemon, clean_environment
from ruvd_client import AsyncClient

DEPLOY = Path(__file__).parents[2] / "deploy"
FILE = DEPLOY / "compose.yaml"
RUVD = Path(sys.executable).with_name("ruvd")
REPLICAS = ("ruvd-1", "ruvd-2", "ruvd-3")

pytestmark = pytest.mark.timeout(400)


def compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """Returns the file with its variables replaced."""
    text = re.sub(
        r"\$\{(\w+):-([^}]*)\}",
        lambda found: variables.get(found[1], "") or found[2],
        FILE.read_text(encoding="utf-8"),
    )
    assert "${" not in text
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return services


def environment_of(service: dict[str, Any], variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables of a container. One without a value is the caller's, if it is set."""
    found = {}
    for name, value in service["environment"].items():
        if value is not None:
            assert isinstance(value, str), f"{name} is not quoted"
            found[name] = value
        elif name in variables:
            found[name] = variables[name]
    return found


def without_chown(script: str) -> str:
    """Returns the script without what only root may do."""
    return re.sub(r"(?m)^chown .*$", "", script)


def test_all_ports_are_open_to_this_machine_only() -> None:
    services = compose({})
    assert "ports" not in services["postgres"]
    published = [port for name in REPLICAS for port in services[name]["ports"]]
    assert published == [f"127.0.0.1:{50051 + number}:50051" for number in range(3)]


def test_images_are_pinned_or_built_here() -> None:
    services = compose({})
    assert re.fullmatch(r"postgres:[\w.-]+@sha256:[0-9a-f]{64}", services["postgres"]["image"])
    assert services["certificates"]["image"] == services["postgres"]["image"]
    for name in REPLICAS:
        build = services[name]["build"]
        context = DEPLOY / build["context"]
        assert (context / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
        for argument in build["args"]:
            assert f"ARG {argument}=" in (DEPLOY / "Dockerfile").read_text()


def test_daemons_start_after_the_database_and_have_time_to_drain() -> None:
    services = compose({})
    assert services["postgres"]["healthcheck"]["test"][0] == "CMD"
    for name in REPLICAS:
        assert services[name]["depends_on"] == {
            "postgres": {"condition": "service_healthy"},
            "certificates": {"condition": "service_completed_successfully"},
        }
        assert services[name]["stop_grace_period"] == "30s"


def test_the_engine_is_that_of_the_caller() -> None:
    caller = {"RUVD_ENGINE": "openai", "RUVD_BASE_URL": "http://a/v1", "RUVD_MODEL": "m"}
    assert environment_of(compose({})["ruvd-1"], {})["RUVD_ENGINE"] == "echo"
    assert "RUVD_BASE_URL" not in environment_of(compose({})["ruvd-1"], {})
    found = environment_of(compose(caller)["ruvd-2"], caller)
    assert caller.items() <= found.items()


async def test_the_daemons_share_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"POSTGRES_PASSWORD": PASSWORD}
    services = compose(variables)
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"] == PASSWORD
    with tempfile.TemporaryDirectory(prefix="ruvd-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)  # the server may run as another user
        async with AsyncExitStack() as stack:
            server = stack.enter_context(
                password_server.running(Path(directory, "pg"), monkeypatch, tls=False)
            )
            script = services["certificates"]["command"][0].replace("/run/peers", directory)
            made = await asyncio.create_subprocess_exec("sh", "-ec", without_chown(script))
            assert await made.wait() == 0
            daemons = []
            for name in REPLICAS:
                folder = Path(directory, name)
                folder.mkdir()
                replaced = {
                    "/run/ruvd/": f"{folder}/",
                    "0.0.0.0:50051": "0.0.0.0:0",
                    "0.0.0.0:50053": "127.0.0.1:0",
                    "/run/peers/": f"{directory}/",
                    "postgres:5432": server.address,
                }
                environment = environment_of(services[name], variables)
                # The port is known when the daemon starts, here.
                assert environment.pop("RUVD_PEER_ADDRESS") == f"{name}:50053"
                for there, here in replaced.items():
                    environment = {k: v.replace(there, here) for k, v in environment.items()}
                process = await asyncio.create_subprocess_exec(
                    *(RUVD, "serve", "--log-format", "json"),
                    stderr=asyncio.subprocess.PIPE,
                    env={**clean_environment(), **environment},
                    cwd=folder,
                    limit=1 << 20,
                )
                daemons.append(RunningDaemon(process, folder))
                stack.push_async_callback(daemons[-1].stop)
            for number, daemon in enumerate(daemons, 1):
                await daemon.listening(2)
                address = f"127.0.0.1:{daemon.address.rpartition(':')[2]}"
                async with AsyncClient(address) as client:
                    assert await client.complete(f"turn {number}", session_id="ada").text()
                    assert (await client.get_session("ada")).exchange_count == number
