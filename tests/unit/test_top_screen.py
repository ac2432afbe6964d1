"""The screen and the JSON of `ruvd top`, from readings without a daemon."""

from __future__ import annotations

import io
import json
from dataclasses import replace

from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from ruvd_client.v1 import session_service_pb2 as pb

from ruvd.admin.v1 import admin_service_pb2 as admin_pb
from ruvd.cli import top_json, top_screen
from ruvd.cli.top_readings import Reading

MIB = 1 << 20
RUNNING = admin_pb.RunningCompletion(
    completion_id="c1",
    session_id="s1",
    tenant="acme",
    model="[bold]m[/bold]\x1b[2J",
    phase=admin_pb.RunningCompletion.PHASE_ANSWER,
    elapsed=Duration(seconds=4),
    time_to_first_token=Duration(seconds=2),
    sent_messages=7,
    output_pieces=101,
)
SESSION = pb.Session(
    id="s1",
    exchange_count=3,
    message_count=6,
    usage=pb.Usage(prompt_tokens=1200, cached_tokens=900, completion_tokens=45),
)
READING = Reading(
    "127.0.0.1:50051",
    is_ready=True,
    info=pb.GetServerInfoResponse(
        version="1.2.3", engines=[pb.EngineInfo(name="llama", ready=True, default_model="smol")]
    ),
    metrics=pb.SessionMetrics(total_sessions=5, active_sessions=4, cache_hit_rate=75.0),
    sessions=[SESSION],
    status=admin_pb.Status(
        ready=True,
        store_up=True,
        waiting_for_session=1,
        waiting_for_engine=2,
        waiting_batch_items=3,
        memory_bytes=100 * MIB,
        memory_limit_bytes=400 * MIB,
    ),
    completions=[RUNNING],
    total_completions=31,
)


def screen(reading: Reading, before: Reading | None = None) -> str:
    """Returns what is drawn on a wide terminal without colours, with single spaces."""
    console = Console(file=io.StringIO(), width=200, highlight=False, soft_wrap=True)
    console.print(top_screen.render(reading, before))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(" ".join(line.split()) for line in console.file.getvalue().splitlines())


def test_the_screen_has_the_daemon_what_runs_and_the_sessions() -> None:
    shown = screen(READING)
    for line in (
        "daemon ruvd 1.2.3 at 127.0.0.1:50051, ready",
        "engine llama, up, smol",
        "store up",
        "memory 100 of 400 MiB, 25%",
        "waiting 1 for a turn in their session, 2 for the engine, 3 items of batches for it",
        "sessions 4 active, 5 stored",
        "cache 75.0 % of the prompt tokens of sessions, since the start",
        "c1 s1 acme [bold]m[/bold][2J answer 4.00 s 2.00 s 7 101 50.0",
        "and 30 more",
        "s1 01-01 00:00:00Z 3 6 1,200 900 75% 45",
    ):
        assert line in shown.splitlines() or line in shown
    assert "\x1b" not in shown


def test_what_is_not_known_is_a_dash_and_has_its_reason() -> None:
    reading = Reading(
        "unix:/r.sock",
        sessions=[pb.Session(id="s", usage=pb.Usage(prompt_tokens=5))],
        problems=["administration: no socket"],
    )
    shown = screen(reading)
    assert "daemon unix:/r.sock, not ready" in shown
    assert "administration: no socket" in shown
    assert "s 01-01 00:00:00Z 0 0 5 - - 0" in shown
    assert "running" not in shown


def test_completions_that_could_not_be_read_are_not_shown_as_none() -> None:
    problems = ["administration: UNIMPLEMENTED"]
    shown = screen(replace(READING, completions=(), total_completions=None, problems=problems))
    assert "store up" in shown
    assert "UNIMPLEMENTED" in shown
    assert "nothing" not in shown


def test_a_tight_or_draining_daemon_says_so() -> None:
    assert READING.status is not None
    status = admin_pb.Status()
    status.CopyFrom(READING.status)
    status.memory_bytes = 390 * MIB
    status.draining = True
    shown = screen(replace(READING, status=status, completions=(), total_completions=0))
    assert "98%; new calls are refused" in shown
    assert "127.0.0.1:50051, draining" in shown
    assert "nothing" in shown


def test_a_daemon_that_is_away_keeps_its_last_reading_on_the_screen() -> None:
    away = Reading("127.0.0.1:50051", is_away=True, problems=["no daemon at 127.0.0.1:50051"])
    assert screen(away) == "no daemon at 127.0.0.1:50051"
    shown = screen(away, READING)
    assert shown.startswith("no daemon at")
    assert "The last reading before it went:" in shown
    assert "c1 s1 acme" in shown


def test_json_has_the_fields_of_the_apis_and_null_for_what_could_not_be_read() -> None:
    fields = json.loads(json.dumps(top_json.to_json(READING)))
    assert fields["reachable"] is True
    assert fields["running"][0]["output_pieces"] == 101
    assert fields["running_total"] == 31
    assert fields["sessions"][0]["usage"]["cached_tokens"] == "900"
    assert "messages" not in fields["sessions"][0]
    assert fields["status"]["waiting_for_engine"] == 2
    away = top_json.to_json(Reading("a", is_away=True))
    assert (away["reachable"], away["status"], away["running_total"]) == (False, None, None)
