"""The `ruvd batch` command against real daemons."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import beside
from running import StartDaemon

Ruvd = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]
Outcome = dict[str, Any]

SLOW = ("--engine", "echo", "--echo-nonce", "--echo-delay-seconds", "0.02")
DEADLINE_SECONDS = 60.0


def line(custom_id: str, content: str, **options: Any) -> str:
    body = {"messages": [{"role": "user", "content": content}], **options}
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    )


def input_file(folder: Path, lines: Iterable[str]) -> str:
    path = folder / "in.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def outcomes(path: Path) -> dict[str, Outcome]:
    """Returns the lines of the output file by custom_id, each of which must occur only once."""
    assert path.read_bytes().endswith(b"\n")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines), Counter(line["custom_id"] for line in lines).most_common(3)
    return found


def answer(outcome: Outcome) -> str:
    assert outcome["response"]["status_code"] == 200, outcome
    return str(outcome["response"]["body"]["choices"][0]["message"]["content"])


def error(outcome: Outcome) -> dict[str, Any]:
    found = outcome["response"]["body"]["error"]
    assert isinstance(found, dict)
    return found


async def wait_for_lines(path: Path, count: int) -> None:
    """Waits until the output file has at least `count` lines."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not path.exists() or path.read_bytes().count(b"\n") < count:  # noqa: ASYNC110  # a file
            await asyncio.sleep(0.01)


async def test_each_line_has_an_outcome_in_openais_format(
    address: str, ruvd: Ruvd, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    lines = [line(f"q{n}", f"number {n} \u2028 ä", model="m") for n in range(20)]
    file = input_file(tmp_path, [*lines, "", "  "])
    ended = await ruvd("batch", file, "--out", str(out), "--address", address)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "20 succeeded, 0 failed" in ended.stderr
    assert "wall time" in ended.stderr
    found = outcomes(out)
    assert {key: answer(outcome) for key, outcome in found.items()} == {
        f"q{n}": f"number {n} \u2028 ä" for n in range(20)
    }
    body = found["q3"]["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", "m")
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] > 0
    assert found["q3"]["error"] is None
    assert out.stat().st_mode & 0o777 == 0o600


async def test_invalid_lines_fail_without_affecting_the_others(
    address: str, ruvd: Ruvd, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    wrong_role = line("role", "x").replace('"user"', '"usr"')
    lines = [line("good", "x"), "nonsense", line("hot", "x", temperature=9), wrong_role]
    file = input_file(tmp_path, [*lines, line("huge", "x " * 3_000_000), line("last", "y")])
    ended = await ruvd("batch", file, "--out", str(out), "--address", address)
    assert ended.returncode == 1
    assert "2 succeeded, 4 failed" in ended.stderr
    found: dict[Any, Outcome] = {**outcomes(out)}
    assert [answer(found[key]) for key in ("good", "last")] == ["x", "y"]
    assert error(found[None])["message"].startswith("line 2: not valid JSON")
    assert error(found["hot"])["param"] == "body.temperature"
    assert error(found["hot"])["code"] == "INVALID_REQUEST"
    assert error(found["role"])["param"] == "body.messages[0].role"
    assert error(found["role"])["message"].startswith("line 4: ")
    assert "max_request_bytes" in error(found["huge"])["message"]
    again = await ruvd("batch", file, "--out", str(out), "--address", address)
    assert again.returncode == 1
    assert "6 done before (of these 4 failed)" in again.stderr
    assert {**outcomes(out)} == found


async def test_failed_items_run_again_with_retry_failed(
    daemon: StartDaemon, ruvd: Ruvd, tmp_path: Path
) -> None:
    """The nonces in answers show that successful items are not run again."""
    out = tmp_path / "out.jsonl"
    long = "word " * 100
    file = input_file(tmp_path, [line("long", long), line("short", "word")])
    async with daemon("--engine", "echo", "--echo-nonce", "--max-message-bytes", "50") as running:
        ended = await ruvd("batch", file, "--out", str(out), "--address", running.address)
        assert ended.returncode == 1
    before = outcomes(out)
    async with daemon("--engine", "echo", "--echo-nonce") as running:
        flags = ("--out", str(out), "--address", running.address)
        assert (await ruvd("batch", file, *flags)).returncode == 1
        assert outcomes(out) == before
        ended = await ruvd("batch", file, *flags, "--retry-failed")
    assert ended.returncode == 0
    assert "1 succeeded, 0 failed, 1 done before" in ended.stderr
    after = outcomes(out)
    assert after["short"] == before["short"]
    assert answer(after["long"]).startswith("word word")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("source", ["file", "stdin"])
async def test_a_duplicate_custom_id_is_an_error_before_anything_runs(
    address: str, ruvd: Ruvd, tmp_path: Path, source: str
) -> None:
    out = tmp_path / "out.jsonl"
    lines = [line("a", "x"), line("b", "x"), "", line("a", "y")]
    file, text = input_file(tmp_path, lines), "\n".join(lines)
    arguments = (file,) if source == "file" else ("-",)
    flags = ("--out", str(out), "--address", address)
    ended = await ruvd("batch", *arguments, *flags, stdin=text)
    assert ended.returncode == 2
    assert "lines 1 and 4 have the same custom_id, 'a'" in ended.stderr
    assert out.read_bytes() == b""


async def test_stdin_can_be_the_input_file(address: str, ruvd: Ruvd, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    text = f"{line('a', 'x')}\n{line('b', 'y')}"
    for _ in range(2):
        flags = ("--out", str(out), "--address", address)
        ended = await ruvd("batch", "-", *flags, stdin=text)
        assert ended.returncode == 0
        assert {key: answer(outcome) for key, outcome in outcomes(out).items()} == {
            "a": "x",
            "b": "y",
        }
    assert "0 succeeded, 0 failed, 2 done before" in ended.stderr


async def test_a_file_that_is_no_batch_output_is_not_overwritten(
    address: str, ruvd: Ruvd, tmp_path: Path
) -> None:
    file, out = input_file(tmp_path, [line("a", "x")]), tmp_path / "out.jsonl"
    for text in ("notes", "notes\n", line("a", "x"), '{"id": "x"}\n'):
        out.write_text(text)
        ended = await ruvd("batch", file, "--out", str(out), "--address", address)
        assert ended.returncode == 2
        assert "was not written by ruvd batch" in ended.stderr
        assert out.read_text() == text
    for arguments in ([file, "--out", file], [file, "--out", str(tmp_path)], ["no", "--out", "x"]):
        ended = await ruvd("batch", *arguments, "--address", address)
        assert ended.returncode == 2, ended


async def test_the_outcomes_of_another_input_file_are_not_reused(
    address: str, ruvd: Ruvd, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    flags = ("--out", str(out), "--address", address)
    await ruvd("batch", input_file(tmp_path, [line("a", "x")]), *flags)
    before = out.read_bytes()
    ended = await ruvd("batch", input_file(tmp_path, [line("b", "z"), line("a", "y")]), *flags)
    assert ended.returncode == 2
    assert "another request with custom_id 'a' than line 2" in ended.stderr
    assert out.read_bytes() == before


async def test_the_same_items_are_not_generated_twice_within_the_retention(
    daemon: StartDaemon, ruvd: Ruvd, tmp_path: Path
) -> None:
    """The nonces in answers show that they were generated once."""
    file = input_file(tmp_path, [line(f"q{n}", f"number {n}") for n in range(10)])
    async with daemon("--engine", "echo", "--echo-nonce") as running:
        found = []
        for name in ("one", "two"):
            out = tmp_path / name
            await ruvd("batch", file, "--out", str(out), "--address", running.address)
            found.append({key: answer(outcome) for key, outcome in outcomes(out).items()})
        assert found[0] == found[1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_a_stopped_run_can_be_continued(
    daemon: StartDaemon, ruvd: Ruvd, tmp_path: Path, how: signal.Signals
) -> None:
    """The nonces in answers show that finished items are not run again."""
    out = tmp_path / "out.jsonl"
    file = input_file(tmp_path, [line(f"q{n}", f"number {n}") for n in range(100)])
    async with daemon(*SLOW) as running:
        flags = ("--out", str(out), "--address", running.address)
        async with beside("batch", file, *flags, "--max-concurrency", "2") as process:
            await wait_for_lines(out, 20)
            process.send_signal(how)
            _, complaints = await process.communicate()
        if how is signal.SIGINT:
            assert process.returncode == 130
            assert "run the same command again to continue" in complaints.decode()
            assert "Traceback" not in complaints.decode()
        before = out.read_bytes()
        assert 20 <= before.count(b"\n") < 100
        out.write_bytes(before + b'{"id": "batch_req_0123", "custom_id": "q9')  # a torn write
        ended = await ruvd("batch", file, *flags)
        assert ended.returncode == 0
        assert out.read_bytes().startswith(before)
        found = outcomes(out)
        assert set(found) == {f"q{n}" for n in range(100)}
        assert all(answer(outcome).startswith("number ") for outcome in found.values())
        assert f"{before.count(bytes([10]))} done before" in ended.stderr


async def test_a_last_line_without_a_line_feed_is_kept(
    address: str, ruvd: Ruvd, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    flags = ("--out", str(out), "--address", address)
    await ruvd("batch", input_file(tmp_path, [line("a", "x")]), *flags)
    whole = out.read_bytes()
    out.write_bytes(whole[:-1])
    await ruvd("batch", input_file(tmp_path, [line("a", "x"), line("b", "y")]), *flags)
    assert out.read_bytes().startswith(whole)
    assert set(outcomes(out)) == {"a", "b"}


async def test_a_run_continues_after_a_restart_of_the_daemon(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    file = input_file(tmp_path, [line(f"q{n}", f"number {n}") for n in range(100)])
    async with daemon(*SLOW) as running:
        flags = ("--out", str(out), "--address", running.socket, "--max-concurrency", "2")
        async with beside("batch", file, *flags) as process:
            await wait_for_lines(out, 20)
            running.kill()
            await running.ended()
            before = out.read_bytes()
            async with daemon(*SLOW, folder=running.folder), asyncio.timeout(DEADLINE_SECONDS):
                _, errors = await process.communicate()
            assert process.returncode == 0, errors
        assert "100 succeeded" in errors.decode()
        assert out.read_bytes().startswith(before)
        assert set(outcomes(out)) == {f"q{n}" for n in range(100)}


async def test_a_run_fails_without_a_daemon_and_can_be_continued(
    address: str, ruvd: Ruvd, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    file = input_file(tmp_path, [line("a", "x")])
    ended = await ruvd("batch", file, "--out", str(out), "--address", "127.0.0.1:1")
    assert ended.returncode == 1
    assert "no daemon at 127.0.0.1:1" in ended.stderr
    assert "items left: 1;" in ended.stderr
    ended = await ruvd("batch", file, "--out", str(out), "--address", address)
    assert ended.returncode == 0


async def test_two_runs_cannot_write_the_same_file(
    daemon: StartDaemon, ruvd: Ruvd, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    file = input_file(tmp_path, [line("a", "x"), line("b", "word " * 10_000)])
    async with daemon(*SLOW) as running:
        flags = ("--out", str(out), "--address", running.address)
        async with beside("batch", file, *flags):
            await wait_for_lines(out, 1)
            ended = await ruvd("batch", file, *flags)
            assert ended.returncode == 2
            assert "another ruvd batch is writing" in ended.stderr


async def test_ten_thousand_items_take_seconds_and_little_memory(
    address: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    padding = "x" * 2_000  # 20 MB in all, so seven calls
    file = input_file(tmp_path, (line(f"q{n}", f"{n} {padding}") for n in range(10_000)))
    peak = 0
    async with beside("batch", file, "--out", str(out), "--address", address) as process:
        watched = psutil.Process(process.pid)
        ending = asyncio.create_task(process.communicate())
        async with asyncio.timeout(120):
            while not ending.done():
                try:
                    peak = max(peak, watched.memory_info().rss)
                except psutil.NoSuchProcess:
                    break
                await asyncio.wait({ending}, timeout=0.1)
            _, errors = await ending
        assert process.returncode == 0, errors
    assert "10,000 succeeded, 0 failed" in errors.decode()
    assert len(outcomes(out)) == 10_000
    assert peak < 160 << 20
