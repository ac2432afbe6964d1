"""The comments of the rpcs in `session_service.proto`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ruvd.v1 import session_service_pb2 as pb

PROTO = Path(__file__).parents[2] / "proto" / "ruvd" / "v1" / "session_service.proto"
COMMENTED_RPC = re.compile(r"((?:^ *//.*\n)+) *rpc (\w+)\(", re.MULTILINE)
COMMENTS = {
    name: " ".join(line.strip(" /") for line in comment.splitlines())
    for comment, name in COMMENTED_RPC.findall(PROTO.read_text())
}
REASONS = {name.removeprefix("ERROR_REASON_") for name in pb.ErrorReason.DESCRIPTOR.values_by_name}


@pytest.mark.parametrize("name", pb.DESCRIPTOR.services_by_name["SessionService"].methods_by_name)
def test_an_rpcs_comment_begins_with_its_name_and_lists_its_errors(name: str) -> None:
    text, _, errors = COMMENTS[name].partition(" Errors: ")
    assert text.startswith(f"{name} ")
    reasons = set(re.findall(r"\b[A-Z][A-Z_]+\b", errors))
    assert reasons
    assert reasons <= REASONS
