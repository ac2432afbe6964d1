"""The clients have every call, every field and every reason of the API.

clients/CONFORMANCE.md has the names of the calls in each language.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from ruvd_client import AsyncClient, Client, ErrorReason
from ruvd_client.protocol import CompleteArguments, CreateSessionArguments
from ruvd_client.v1 import session_service_pb2 as pb

CLIENTS = Path(__file__).parents[2] / "clients"
SERVICE = pb.DESCRIPTOR.services_by_name["SessionService"]
SPECIFICATION = (CLIENTS / "CONFORMANCE.md").read_text()
ROW = re.compile(r"^\| `([A-Z]\w+|grpc\.\S+)`((?: \|[^|]*){5}) \|$", re.MULTILINE)
LANGUAGES = ["Python", "TypeScript", "Go", "Java", "Rust"]
NAMES = re.compile(r"`(\w+)`")
CALLS = {
    call: dict(zip(LANGUAGES, map(NAMES.findall, cells.split("|")[1:]), strict=True))
    for call, cells in ROW.findall(SPECIFICATION)
}
# The beginning of a method's definition, with its name in place of NAME.
DEFINITIONS = {
    "Python": ("python/ruvd_client/*.py", r"    (?:async )?def NAME\("),
    "TypeScript": ("typescript/src/client.ts", r"  (?:async )?\*?NAME\("),
    "Go": ("go/*.go", r"func \(c \*Client\) NAME\("),
    "Java": ("java/src/main/java/dev/ruvd/client/RuvdClient.java", r"  public .*\bNAME\("),
    "Rust": ("rust/src/client.rs", r"    pub (?:async )?fn NAME[(<]"),
}
# The files that have a constant for each reason, or the enumeration that they are made of.
REASONS = {
    "TypeScript": ("typescript/src/v1/ruvd/v1/session_service.ts", r"\bERROR_REASON_(\w+) = \d+"),
    "Go": ("go/reasons.go", r'\bReason\w+ +Reason = "(\w+)"'),
    "Java": (
        "java/src/generated/java/dev/ruvd/v1/ErrorReason.java",
        r"^  ERROR_REASON_(\w+)\(\d+\)",
    ),
    "Rust": ("rust/src/v1/ruvd.v1.rs", r'=> "ERROR_REASON_(\w+)"'),
}
# Arguments with another name than the field, or for a part of it.
ARGUMENTS = {
    "idle_timeout": "idle_timeout_seconds",
    "disconnect_grace": "disconnect_grace_seconds",
}


def test_the_table_of_calls_has_those_of_the_service_and_the_health_check() -> None:
    methods = [method.name for method in SERVICE.methods]
    assert sorted(CALLS) == sorted([*methods, "grpc.health.v1.Health/Check"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_client_has_the_methods_of_the_table(language: str) -> None:
    files, definition = DEFINITIONS[language]
    source = "\n".join(path.read_text() for path in sorted(CLIENTS.glob(files)))
    for call, names in CALLS.items():
        assert names[language], call
        for name in names[language]:
            pattern = "^" + definition.replace("NAME", name)
            assert re.search(pattern, source, re.MULTILINE), name


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_caller_of_the_python_client_can_set_every_field(client: type) -> None:
    missing = set()
    for method in SERVICE.methods:
        (name,) = CALLS[method.name]["Python"]
        arguments = set(inspect.signature(getattr(client, name)).parameters)
        arguments |= {
            "CreateSession": CreateSessionArguments.__annotations__.keys(),
            "Complete": CompleteArguments.__annotations__.keys(),
        }.get(method.name, set())
        fields = {field.name for field in method.input_type.fields}
        if method.name == "Complete":
            fields |= {field.name for field in pb.CompletionOptions.DESCRIPTOR.fields}
            fields.remove("options")
        missing |= {
            f"{method.input_type.name}.{field}"
            for field in fields
            if ARGUMENTS.get(field, field) not in arguments
        }
    set_by_clients = re.findall(r"`(\w+Request\.\w+)`", SPECIFICATION)
    assert missing | {"BatchCompleteRequest.items"} == set(set_by_clients)


@pytest.mark.parametrize("language", REASONS)
def test_every_client_has_every_reason(language: str) -> None:
    file, pattern = REASONS[language]
    found = set(re.findall(pattern, (CLIENTS / file).read_text(), re.MULTILINE))
    expected = {
        name.removeprefix("ERROR_REASON_") for name in pb.ErrorReason.DESCRIPTOR.values_by_name
    }
    assert found | {"UNSPECIFIED"} == expected
    assert expected - {"UNSPECIFIED"} < set(ErrorReason)
