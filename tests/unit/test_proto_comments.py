"""The comments of the rpcs in the protos."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ruvd.admin.v1 import admin_service_pb2 as admin_pb
from ruvd.v1 import session_service_pb2 as pb

PROTOS = Path(__file__).parents[2] / "proto"
COMMENTED_RPC = re.compile(r"((?:^ *//.*\n)+) *rpc (\w+)\(", re.MULTILINE)
COMMENTS = {
    name: " ".join(line.strip(" /") for line in comment.splitlines())
    for proto in PROTOS.rglob("*.proto")
    for comment, name in COMMENTED_RPC.findall(proto.read_text())
}
REASONS = {
    name.removeprefix("ERROR_REASON_")
    for enum in (pb.ErrorReason, admin_pb.ErrorReason)
    for name in enum.DESCRIPTOR.values_by_name
}
METHODS = [
    method.name
    for file in (pb.DESCRIPTOR, admin_pb.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
]


@pytest.mark.parametrize("name", METHODS)
def test_an_rpcs_comment_begins_with_its_name_and_lists_its_errors(name: str) -> None:
    text, _, errors = COMMENTS[name].partition(" Errors: ")
    assert text.startswith(f"{name} ")
    reasons = set(re.findall(r"\b[A-Z][A-Z_]+\b", errors))
    assert reasons
    assert reasons <= REASONS
