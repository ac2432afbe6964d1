"""`ruvd sessions`: lists, shows, compacts and ends sessions.

`--json` prints the API's field names.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from ruvd_client import Message, Role, Session, SessionView

from ruvd.cli.address import Address, default_address
from ruvd.cli.console import out, print_error, printable
from ruvd.cli.terminal import AsJson, connected

# See `ruvd.stores.sqlite.housekeeping`.
_ERASURE = "Within 10 s nothing of them is in the daemon's files, except what a fork shares."


def _labels(_: type, labels: Sequence[str] | None) -> None:
    for label in labels or ():
        if "=" not in label or label.startswith("="):
            raise ValueError(f"{label!r} is not of the form KEY=VALUE")


def list_sessions(
    *,
    label: Annotated[
        list[str] | None,
        Parameter(
            validator=_labels,
            negative=(),
            help="Only sessions with this label KEY=VALUE.",
        ),
    ] = None,
    as_json: AsJson = False,
    address: Address = default_address,
) -> None:
    """Runs `ruvd sessions list`, in the order of creation."""
    wanted = dict(item.split("=", 1) for item in label or ())
    with connected(address) as client:
        listed = list(client.list_sessions(wanted))
    if as_json:
        _print_json([_as_dict(session, messages=False) for session in listed])
    elif not listed:
        out.print("no sessions")
    else:
        _print_table(listed)


def show(
    session_id: str,
    /,
    *,
    as_json: AsJson = False,
    address: Address = default_address,
) -> None:
    """Runs `ruvd sessions show`."""
    with connected(address) as client:
        session = client.get_session(session_id, SessionView.SESSION_VIEW_FULL)
    if as_json:
        _print_json(_as_dict(session, messages=True))
        return
    fields = {
        "session": session.id,
        "created": _time(session.create_time),
        "last used": _time(session.last_used_time),
        "expires": _time(session.expire_time) if session.HasField("expire_time") else "in use",
        "history": f"{session.exchange_count} exchanges, {session.message_count} messages",
        "labels": _label_text(session),
        "forked from": session.parent_id,
        "running": session.running_completion_id,
        "tokens": f"{session.usage.prompt_tokens} prompt, {_cached(session)} cached, "
        f"{session.usage.completion_tokens} generated",
        "system": session.system_prompt,
        "instruction": session.compaction_instruction,
        "compactions": str(session.compactions) if session.compactions else "",
        "summary": _summary(session),
    }
    for name, value in fields.items():
        if value:
            _print_entry(name, value, "bold")
    for message in session.messages:
        _print_message(message)


def compact(
    session_id: str,
    /,
    *,
    dry_run: Annotated[
        bool, Parameter(negative=(), help="Only say what would be done; nothing is changed.")
    ] = False,
    as_json: AsJson = False,
    address: Address = default_address,
) -> None:
    """Runs `ruvd sessions compact`."""
    with connected(address) as client:
        done = client.compact_session(session_id, dry_run=dry_run)
    if as_json:
        fields = MessageToDict(
            done, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        fields["session"].pop("messages", None)
        _print_json(fields)
        return
    if not done.summarized_exchanges:
        out.print(f"{session_id}: nothing to summarise", markup=False)
        return
    verb = "would summarise" if dry_run else "summarised"
    out.print(
        f"{session_id}: {verb} {done.summarized_exchanges} exchanges, the last"
        f" {done.kept_exchanges} stay in the prompt",
        markup=False,
    )
    if done.HasField("bytes_after"):
        out.print(f"the prompt has {done.bytes_after} bytes, {done.bytes_before} before")
        _print_entry("summary", _summary(done.session), "bold")


def end(
    *session_ids: Annotated[str, Parameter(help="Ids of the sessions.")],
    all_sessions: Annotated[
        bool, Parameter(name="--all", negative=(), help="End all sessions, also those in use.")
    ] = False,
    address: Address = default_address,
) -> int:
    """Runs `ruvd sessions end`; returns its exit code."""
    if all_sessions is bool(session_ids):
        print_error("name the sessions to end, or use --all")
        return 2
    with connected(address) as client:
        ended = session_ids or [session.id for session in client.list_sessions()]
        for session_id in ended:
            client.end_session(session_id, allow_missing=all_sessions)
            out.print(f"ended {session_id}", markup=False)
    out.print(_ERASURE if ended else "no sessions")
    return 0


def _print_table(listed: Sequence[Session]) -> None:
    table = Table("id", "created", "last used", box=None, pad_edge=False)
    table.add_column("exchanges", justify="right")
    table.add_column("messages", justify="right")
    table.add_column("labels")
    for session in listed:
        table.add_row(
            session.id,
            _time(session.create_time),
            _time(session.last_used_time),
            str(session.exchange_count) + ("+" if session.running_completion_id else ""),
            str(session.message_count),
            printable(_label_text(session)),
        )
    out.print(table, markup=False)


def _print_message(message: Message) -> None:
    """Prints a message with its reasoning and tool calls, or a tool's result with its call id."""
    if message.reasoning:
        _print_entry("reasoning", message.reasoning, "dim")
    pin = "[pinned] " if message.pinned else ""
    if message.content or not message.tool_calls:
        call = f"[{message.tool_call_id}] " if message.tool_call_id else ""
        role = Role.Name(message.role).removeprefix("ROLE_").lower()
        _print_entry(role, f"{pin}{call}{message.content}", "cyan")
    for each in message.tool_calls:
        _print_entry("calls", f"[{each.id}] {each.name}({each.arguments})", "cyan")


def _print_entry(name: str, value: str, style: str) -> None:
    out.print(f"{name:>12}  ", style=style, end="", markup=False)
    out.out(printable(value))


def _print_json(value: Any) -> None:
    out.out(json.dumps(value, indent=2, ensure_ascii=False))


def _as_dict(session: Session, *, messages: bool) -> dict[str, Any]:
    fields = MessageToDict(
        session, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    if not messages:
        # Not read, and an empty list would mean that there are none.
        fields.pop("messages", None)
    return fields


def _summary(session: Session) -> str:
    if not session.summary:
        return ""
    return f"[of the first {session.summary_exchange_count} exchanges] {session.summary}"


def _label_text(session: Session) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(session.labels.items()))


def _cached(session: Session) -> str:
    return str(session.usage.cached_tokens) if session.usage.HasField("cached_tokens") else "-"


def _time(timestamp: Timestamp) -> str:
    return timestamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S") + "Z"
