"""`ruvd admin`: the commands that administer a running daemon."""

import json
import time
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from rich.progress import Progress
from rich.table import Table

from ruvd.admin.v1 import admin_service_pb2 as pb
from ruvd.cli.administration import AdminAddress, administered, default_admin_address
from ruvd.cli.console import err, fail, out, print_error, printable
from ruvd.cli.terminal import AsJson

_USAGE = 2
_PAGE = 1000
# Keys of JWTs may have to be fetched from a URL that does not answer.
_RELOAD_SECONDS = 60.0
_LEVELS: dict[str, pb.LogLevel.ValueType] = {
    "debug": pb.LOG_LEVEL_DEBUG,
    "info": pb.LOG_LEVEL_INFO,
    "warning": pb.LOG_LEVEL_WARNING,
    "error": pb.LOG_LEVEL_ERROR,
    "setting": pb.LOG_LEVEL_UNSPECIFIED,
}
_OUTCOMES = {
    pb.ReloadedSecret.OUTCOME_UNCHANGED: "in use, unchanged",
    pb.ReloadedSecret.OUTCOME_TAKEN: "in use now",
    pb.ReloadedSecret.OUTCOME_REFUSED: "refused",
}

_CHANGES = {
    pb.ReloadedEngine.OUTCOME_UNCHANGED: "unchanged",
    pb.ReloadedEngine.OUTCOME_ADDED: "added",
    pb.ReloadedEngine.OUTCOME_CHANGED: "changed",
    pb.ReloadedEngine.OUTCOME_REMOVED: "removed",
}


def status(*, as_json: AsJson = False, address: AdminAddress = default_admin_address) -> None:
    """Runs `ruvd admin status`."""
    with administered(address) as (administrator, at):
        state = administrator.call("GetStatus", pb.GetStatusRequest()).status
    if as_json:
        _print_json(_as_dict(state))
        return
    flags = {"ready": state.ready, "draining": state.draining, "stopping": state.stopping}
    fields = {
        "daemon": f"ruvd {state.version} at {at}",
        "state": ", ".join(name for name, holds in flags.items() if holds) or "not ready",
        "completions": str(state.running_completions),
        "log level": _log_level(state),
    }
    for name, value in fields.items():
        out.print(f"{name:<12}{printable(value)}", markup=False)


def log_level(
    level: Annotated[
        Literal["debug", "info", "warning", "error", "setting"],
        Parameter(help="Lowest level to log; setting: that of the setting log_level."),
    ],
    /,
    *,
    seconds: Annotated[
        float | None,
        Parameter(
            name="--for",
            help="Seconds after which the level returns to the setting.",
            validator=validators.Number(gt=0, lte=86_400),
        ),
    ] = None,
    address: AdminAddress = default_admin_address,
) -> int:
    """Runs `ruvd admin log-level`; returns its exit code."""
    if level == "setting" and seconds is not None:
        print_error("the level of the setting stays: leave --for out")
        return _USAGE
    request = pb.SetLogLevelRequest(level=_LEVELS[level])
    if seconds is not None:
        duration = Duration()
        duration.FromNanoseconds(int(seconds * 1e9))
        request.duration.CopyFrom(duration)
    with administered(address) as (administrator, _):
        state = administrator.call("SetLogLevel", request).status
    out.print(f"log level: {_log_level(state)}", markup=False)
    return 0


def backup(
    name: Annotated[
        str,
        Parameter(help="Name of the new file in the daemon's backup_dir. Default: with the time."),
    ] = "",
    /,
    *,
    address: AdminAddress = default_admin_address,
) -> None:
    """Runs `ruvd admin backup`."""
    file = None
    with (
        administered(address) as (administrator, _),
        Progress(console=err, transient=True, disable=not err.is_terminal) as bar,
    ):
        task = bar.add_task("copying", total=None)
        for response in administrator.stream("Backup", pb.BackupRequest(name=name)):
            if response.HasField("file"):
                file = response.file
            else:
                done = response.progress
                bar.update(task, completed=done.copied_pages, total=done.total_pages)
    if file is None:
        fail("the daemon did not say where the backup is")
    out.print(f"{printable(file.path)}: {file.size_bytes:,} bytes, checked", markup=False)


def tenants(*, as_json: AsJson = False, address: AdminAddress = default_admin_address) -> None:
    """Runs `ruvd admin tenants`."""
    listed: list[pb.Tenant] = []
    with administered(address) as (administrator, _):
        request = pb.ListTenantsRequest(page_size=_PAGE)
        while True:
            response = administrator.call("ListTenants", request)
            listed += response.tenants
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
    if as_json:
        _print_json([_as_dict(each) for each in listed])
        return
    if not listed:
        out.print("no tenant has sessions or completions")
        return
    table = Table("tenant", "sessions", "active", "messages", "bytes", "running", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in listed:
        figures = (
            each.session_count,
            each.active_session_count,
            each.message_count,
            each.history_bytes,
            each.running_completions,
        )
        table.add_row(printable(each.name), *(f"{figure:,}" for figure in figures))
    out.print(table, markup=False)


def reload_secrets(
    *, as_json: AsJson = False, address: AdminAddress = default_admin_address
) -> int:
    """Runs `ruvd admin reload-secrets`; returns its exit code, 1 if a file was refused."""
    request = pb.ReloadSecretsRequest()
    with administered(address) as (administrator, _):
        secrets = administrator.call("ReloadSecrets", request, _RELOAD_SECONDS).secrets
    if as_json:
        _print_json([_as_dict(each) for each in secrets])
    elif not secrets:
        out.print("the settings name no file with secrets")
    for each in () if as_json else secrets:
        why = f": {each.error}" if each.error else ""
        text = f"{each.setting} ({each.location}): {_OUTCOMES.get(each.outcome, '-')}{why}"
        out.print(printable(text), markup=False)
    return int(any(each.outcome == pb.ReloadedSecret.OUTCOME_REFUSED for each in secrets))


def reload_settings(
    *, as_json: AsJson = False, address: AdminAddress = default_admin_address
) -> int:
    """Runs `ruvd admin reload`; returns its exit code, 1 if the settings were not taken."""
    request = pb.ReloadSettingsRequest()
    with administered(address) as (administrator, _):
        result = administrator.call("ReloadSettings", request, _RELOAD_SECONDS)
    if as_json:
        _print_json(_as_dict(result))
        return int(bool(result.errors))
    for error in result.errors:
        print_error(f"{printable(error)}")
    if result.errors:
        print_error("nothing was changed")
        return 1
    for each in result.engines:
        out.print(printable(f"engine {each.name}: {_CHANGES.get(each.outcome, '-')}"), markup=False)
    if not result.engines:
        out.print("the settings have no named engines")
    if result.restart_needed:
        names = ", ".join(result.restart_needed)
        out.print(printable(f"changed, and taken only by a restart: {names}"), markup=False)
    return 0


def _log_level(state: pb.Status) -> str:
    name = next((name for name, level in _LEVELS.items() if level == state.log_level), "unknown")
    if not state.HasField("log_level_expire_time"):
        return name
    left = max(0.0, state.log_level_expire_time.ToNanoseconds() / 1e9 - time.time())
    return f"{name}, for {left:.0f} s"


def _as_dict(message: Any) -> dict[str, Any]:
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _print_json(value: object) -> None:
    out.out(json.dumps(value, indent=2, ensure_ascii=False))
