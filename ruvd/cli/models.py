"""`ruvd models`: lists the names that `model` of a call or a session may have."""

import json

from ruvd.cli.address import Address, default_address
from ruvd.cli.console import out, printable
from ruvd.cli.terminal import AsJson, connected


def models(
    *,
    as_json: AsJson = False,
    address: Address = default_address,
) -> None:
    """Runs `ruvd models`: prints the engine's models and marks the default."""
    with connected(address) as client:
        listed = client.list_models()
    default = listed.default_model
    if as_json:
        fields = {"models": list(listed.models), "default_model": default}
        out.out(json.dumps(fields, indent=2, ensure_ascii=False))
        return
    for model in listed.models:
        out.out(printable(model) + ("  (default)" if model == default else ""))
    if default not in listed.models:
        # A server may accept names that it does not list.
        out.out(f"{printable(default)}  (default, not listed by the engine)")
