"""The commands without a daemon: exit codes, messages, arithmetic of the demo and the metrics."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from ruvd_client import RuvdError
from ruvd_client.v1 import session_service_pb2 as pb

from ruvd.cli import demo_table, run
from ruvd.cli.console import printable
from ruvd.cli.demo_conversation import SYSTEM_PROMPT, USER_TURNS
from ruvd.cli.demo_table import Turn, Way
from ruvd.cli.metrics import interval_latency, sparkline
from ruvd.cli.terminal import explain

NOWHERE = "127.0.0.1:1"


def way(name: str, *first_token_ms: float | None) -> Way:
    return Way(name, [Turn(100, 50, first, 500.0) for first in first_token_ms])


def test_without_a_daemon_a_command_says_how_to_start_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["sessions", "list", "--address", NOWHERE])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"ruvd: no daemon at {NOWHERE}: start one with `ruvd serve`\n"


@pytest.mark.parametrize("command", [["sessions", "list"], ["chat"], ["health"]])
def test_an_empty_address_in_the_environment_counts_as_unset(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUVD_ADDRESS", "")
    monkeypatch.setattr("ruvd.cli.address.DEFAULT_ADDRESS", NOWHERE)
    monkeypatch.setattr("ruvd.cli.quick_health.DEFAULT_ADDRESS", NOWHERE)
    with suppress(SystemExit):
        run(command)
    printed = capsys.readouterr()
    assert f"no daemon at {NOWHERE}: start one with `ruvd serve`" in printed.out + printed.err


@pytest.mark.parametrize("command", [["drain"], ["admin", "status"], ["admin", "backup"]])
def test_administration_calls_the_admin_socket_of_the_settings(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def called(*flags: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run([*command, *flags])
        assert ended.value.code == 1
        return capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUVD_ADMIN_ADDRESS", "")
    monkeypatch.setenv("RUVD_STORE", f"sqlite:{tmp_path}/s.db")
    assert f"no daemon at unix:{tmp_path}/s.db-admin.sock: " in called()
    monkeypatch.setenv("RUVD_ADMIN_LISTEN", f"unix:{tmp_path}/a.sock")
    assert f"no daemon at unix:{tmp_path}/a.sock: " in called()
    monkeypatch.setenv("RUVD_ADMIN_ADDRESS", f"unix:{tmp_path}/b.sock")
    assert f"no daemon at unix:{tmp_path}/b.sock: " in called()
    assert f"no daemon at {NOWHERE}: " in called("--admin-address", NOWHERE)
    monkeypatch.setenv("RUVD_ADMIN_ADDRESS", "")
    monkeypatch.setenv("RUVD_ADMIN_LISTEN", "none")
    assert "there is no admin socket (admin_listen)" in called()
    monkeypatch.setenv("RUVD_ADMIN_LISTEN", "127.0.0.1:1")
    assert "admin_listen (from RUVD_ADMIN_LISTEN): must be unix:PATH, auto or none" in called()


def test_health_exits_1_when_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["health", "--address", NOWHERE]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["health", "--no-such-flag"],
        ["sessions", "show"],
        ["sessions", "list", "--label", "no-equals-sign"],
        ["demo", "--turns", "11"],
        ["demo", "--turns", "0"],
        ["sessions", "import", "--no-such-flag"],
        ["sessions", "import", "-", "--on-conflict", "overwrite"],
        ["metrics", "--interval", "0"],
        ["backup"],
        ["drain", "--undo", "--wait", "1"],
        ["admin", "log-level"],
        ["admin", "log-level", "loud"],
        ["admin", "log-level", "setting", "--for", "5"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in (
        "serve",
        "config",
        "chat",
        "sessions",
        "health",
        "demo",
        "metrics",
        "backup",
        "models",
        "drain",
        "admin",
    ):
        assert command in printed


def test_an_error_with_a_reason_is_one_line() -> None:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    error = RuvdError(code, "OVERLOADED", "too many\ncompletions", (), 1.5)
    assert explain(error, NOWHERE) == "OVERLOADED: too many completions (try again in 1.5 s)"


def test_an_answer_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\x07c\n\td é 日本") == "a[2Jbc\n\td é 日本"


def test_the_demos_turns_are_of_real_length() -> None:
    assert len(USER_TURNS) == 10
    assert all(15 <= len(turn.split()) <= 60 for turn in USER_TURNS)
    assert 120 <= len(SYSTEM_PROMPT.split()) <= 180


def test_the_median_reduction_leaves_out_the_first_two_turns() -> None:
    session = way("session", 1000.0, 1000.0, 10.0, 20.0, 30.0)
    other = way("other", 1.0, 1.0, 100.0, 100.0, 100.0)
    assert demo_table.median_reduction(session, other) == 80.0
    assert demo_table.reduction(session.turns[0], other, 0) == -99900.0


def test_a_reduction_that_is_unknown_is_no_number() -> None:
    session = way("session", 10.0, None)
    assert demo_table.reduction(session.turns[0], way("other"), 0) is None
    assert demo_table.reduction(session.turns[0], way("other", None), 0) is None
    assert demo_table.reduction(session.turns[1], way("other", 1.0, 1.0), 1) is None
    assert demo_table.median_reduction(session, way("other")) is None


def test_figures_that_the_engine_does_not_report_stay_unknown() -> None:
    timings = pb.Timings(total=Duration(seconds=1, nanos=500_000_000))
    turn = Turn.from_finished(pb.Finished(usage=pb.Usage(prompt_tokens=7), timings=timings))
    assert turn == Turn(7, None, None, 1500.0)


def latency(count: int, mean_seconds: float) -> pb.SessionMetrics:
    mean = Duration()
    mean.FromNanoseconds(round(mean_seconds * 1e9))
    return pb.SessionMetrics(session_completions=count, avg_session_latency=mean)


def test_the_latency_of_an_interval_is_that_of_its_own_completions() -> None:
    assert interval_latency(latency(2, 1.0), latency(4, 2.0)) == pytest.approx(3.0)
    assert interval_latency(pb.SessionMetrics(), latency(4, 2.0)) == pytest.approx(2.0)
    assert interval_latency(latency(4, 2.0), latency(4, 2.0)) is None


def test_after_a_restart_an_interval_has_the_completions_since() -> None:
    assert interval_latency(latency(9, 5.0), latency(2, 0.5)) == pytest.approx(0.5)
    assert interval_latency(latency(9, 5.0), pb.SessionMetrics()) is None


def test_a_plot_leaves_out_unknown_values() -> None:
    assert sparkline([0.0, 50.0, None, 100.0], 100.0) == "▁▅ █"
    assert sparkline([0.0, None], 0.0) == "▁ "
    assert sparkline([], 1.0) == ""
