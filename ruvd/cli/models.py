"""`ruvd models`: what `model` of a call or a session may be, as the engine has it now."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from ruvd.cli.terminal import Address, connected, default_address, out, printable


def models(
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="As JSON.")] = False,
    address: Address = default_address,
) -> None:
    """List the models that the engine offers; the default is marked."""
    with connected(address) as client:
        found = client.list_models()
    default = found.default_model
    if as_json:
        offered = {"models": list(found.models), "default_model": default}
        out.out(json.dumps(offered, indent=2, ensure_ascii=False))
        return
    for model in found.models:
        out.out(printable(model) + ("  (default)" if model == default else ""))
    if default not in found.models:
        # A server may take names that it does not list.
        out.out(f"{printable(default)}  (default, not listed by the engine)")
