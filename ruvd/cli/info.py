"""`ruvd info`: shows what a daemon is and what it can do."""

from google.protobuf.json_format import MessageToJson
from rich.table import Table
from ruvd_client.v1 import session_service_pb2 as pb

from ruvd.cli.address import Address, default_address
from ruvd.cli.console import out, printable
from ruvd.cli.terminal import AsJson, connected


def info(
    *,
    as_json: AsJson = False,
    address: Address = default_address,
) -> None:
    """Runs `ruvd info`: prints the version, the features, the engine and the limits."""
    with connected(address) as client:
        found = client.get_server_info()
    if as_json:
        # All limits are in the output, also those that are 0; what is unknown is left out.
        text = MessageToJson(
            found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        out.out(text)
        return
    table = Table(box=None, show_header=False)
    for name, text in _rows(found):
        table.add_row(name, printable(text))
    out.print(table)


def _name(engine: pb.EngineInfo) -> str:
    return f"{engine.engine_name} ({engine.name})" if engine.engine_name else engine.name


def _rows(found: pb.GetServerInfoResponse) -> list[tuple[str, str]]:
    rows = [
        ("version", found.version),
        ("instance", found.instance_id),
        ("features", ", ".join(found.features)),
    ]
    for engine in found.engines:
        models = ", ".join(engine.models) or "not known"
        rows += [
            ("engine", f"{_name(engine)}, {'ready' if engine.ready else 'not ready'}"),
            ("default model", engine.default_model),
            ("models", models),
        ]
        if engine.HasField("window_tokens"):
            rows.append(("window_tokens", f"{engine.window_tokens:,}"))
        if engine.HasField("slots"):
            rows.append(("slots", f"{engine.slots:,}"))
    limits = found.limits
    for field, value in limits.ListFields():
        if field.message_type is None:
            rows.append((field.name, f"{value:,}"))
        else:
            rows.append((field.name, f"{value.ToTimedelta().total_seconds():g} s"))
    return rows
