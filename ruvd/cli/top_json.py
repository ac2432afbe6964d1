"""A reading of `ruvd top` as JSON, with the names of the APIs' fields."""

from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from ruvd.cli.top_readings import Reading


def to_json(reading: Reading) -> dict[str, Any]:
    """Returns the reading. What could not be read is null."""
    sessions = [_as_dict(each) for each in reading.sessions]
    for each in sessions:
        each.pop("messages", None)  # not read, and an empty list would mean that there are none
    return {
        "address": reading.address,
        "reachable": not reading.is_away,
        "ready": reading.is_ready,
        "info": _or_null(reading.info),
        "metrics": _or_null(reading.metrics),
        "status": _or_null(reading.status),
        "running": [_as_dict(each) for each in reading.completions],
        "running_total": reading.total_completions,
        "sessions": sessions,
        "problems": list(reading.problems),
    }


def _or_null(message: Message | None) -> dict[str, Any] | None:
    return None if message is None else _as_dict(message)


def _as_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
