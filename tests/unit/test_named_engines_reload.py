"""Named engines that are exchanged in a process: what is checked, kept, closed and told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from core import Core

from ruvd.config.loader import Settings, load
from ruvd.core.ports.background import start_unsupervised
from ruvd.core.ports.events import EngineStateChanged, Event
from ruvd.core.ports.secrets import SecretSource
from ruvd.engines.routing.engine import RoutingEngine
from ruvd.rpc.admin.ports import EngineChange
from ruvd.rpc.watched_files import FilesInvalid
from ruvd.server.named_engines import NamedEngines, build_engines
from ruvd.telemetry.conventions import Provider
from ruvd.telemetry.engine_labels import EngineLabels

CLOUD = '[engines.cloud]\nbase_url = "http://127.0.0.1:9"\nmodel = "big"\n'
LAB = CLOUD.replace("cloud", "lab")


class Built:
    """The engines of a settings file, with the core over them."""

    def __init__(self, text: str) -> None:
        write(text)
        self.events: list[Event] = []
        secrets: list[SecretSource] = []
        self.router: RoutingEngine
        self.named: NamedEngines
        self.router, self.named = build_engines(
            read(), self.events.append, start_unsupervised, secrets, None, None
        )
        self.core = Core(self.router)  # type: ignore[arg-type]
        self.named.attach(self.core.completions.engines, read)

    async def reload(self, text: str) -> dict[str, str]:
        """The changes by the names of the engines, or the errors."""
        await asyncio.to_thread(write, text)
        result = await self.named.reload_settings()
        return (
            {"errors": "\n".join(result.errors)}
            if result.errors
            else {name: change.value for name, change in result.engines.items()}
        )


async def built_of(text: str) -> Built:
    return await asyncio.to_thread(Built, text)  # as it reads files


def write(text: str) -> None:
    Path("ruvd.toml").write_text(text)


def read() -> Settings:
    return load({"engine": "echo", "store": "memory"})[0]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f'{CLOUD}models = ["big", "echo"]\n', "engines.cloud: the model 'echo' is that of"),
        (CLOUD.replace("cloud", "echo"), "engines.echo: the name is that of the default engine's"),
        (
            f'compaction_model = "cloud/x"\n{CLOUD}models = ["big"]\n',
            "compaction_model: engine cloud has no model 'x'; it has 'big'",
        ),
    ],
)
async def test_what_is_ambiguous_or_unknown_is_an_error_at_the_start_and_later(
    text: str, error: str
) -> None:
    with pytest.raises(FilesInvalid, match=error):
        await built_of(text)
    if "compaction_model" not in text:  # a daemon keeps its own until a restart
        built = await built_of(LAB)
        assert error in (await built.reload(text))["errors"]
        assert [each.name for each in built.router.named] == ["lab"]
        await built.router.close()


async def test_an_engine_that_is_as_before_goes_on_also_with_other_models() -> None:
    built = await built_of(f"{CLOUD}{LAB}")
    cloud, lab = built.router.named
    assert await built.reload(f"{CLOUD}{LAB}") == {"cloud": "unchanged", "lab": "unchanged"}
    assert await built.reload(f'{CLOUD}models = ["big", "x"]\n{LAB}') == {
        "cloud": EngineChange.CHANGED.value, "lab": "unchanged",
    }  # fmt: skip
    assert list(built.router.named) == [cloud, lab]
    assert built.router.for_model("x") is cloud
    assert await built.reload(f"{CLOUD}retries = 1\n{LAB}") == {
        "cloud": "changed", "lab": "unchanged",
    }  # fmt: skip
    changed, kept = built.router.named
    assert changed is not cloud
    assert kept is lab
    await built.router.close()


async def test_a_removed_engine_is_told_once_and_says_nothing_more() -> None:
    built = await built_of(CLOUD)
    await built.router.start()

    def states() -> list[bool | None]:
        found = [each for each in built.events if isinstance(each, EngineStateChanged)]
        return [each.up for each in found if each.engine == "cloud"]

    await until(lambda: states() == [False])
    assert await built.reload("") == {"cloud": "removed"}
    assert states() == [False, None]
    assert await built.reload(CLOUD) == {"cloud": "added"}
    await until(lambda: states() == [False, None, False])
    assert await built.reload("") == {"cloud": "removed"}
    assert states() == [False, None, False, None]
    await built.router.close()


async def test_the_settings_are_read_once_for_many_requests_at_once() -> None:
    built = await built_of("")
    reads = 0

    def count() -> Settings:
        nonlocal reads
        reads += 1
        return read()

    built.named.attach(built.core.completions.engines, count)
    task = asyncio.create_task(built.named.run())
    for _ in range(1000):
        built.named.request_reload()
    await until(lambda: reads == 1)
    built.named.request_reload()
    await until(lambda: reads == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await built.router.close()


def test_the_metrics_of_named_engines_have_their_labels_in_a_bounded_number() -> None:
    labels = EngineLabels(Provider("test"))
    for number in range(100):
        labels.add(f"e{number}", Provider("test"), "m")
    assert labels.of("e1")["ruvd.engine.name"] == "e1"
    assert labels.of("e99")["ruvd.engine.name"] == "_OTHER"
    assert labels.own_model("e1", "e1") == "m"
    assert labels.own_model("e1", "e1/x") == "x"
    assert "ruvd.engine.name" not in labels.of("")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)
