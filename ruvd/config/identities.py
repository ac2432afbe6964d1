"""The texts in settings that give a caller a tenant and a role: `NAME;tenant=T;role=R`.

NAME is the path of a Unix socket to listen at, or a pattern for the names in credentials.
"""

import re
from typing import NamedTuple

ROLES = ("user", "reader", "admin")
_TENANT = re.compile(r"[\x21-\x3a\x3c-\x7e]{1,255}")  # printable ASCII without space and semicolon


class NamedIdentity(NamedTuple):
    """A name with the tenant and the role of whoever has it; `tenant` is empty if none is given."""

    name: str
    tenant: str
    role: str


def parse(text: str) -> NamedIdentity:
    """Splits `NAME;tenant=T;role=R`. Raises ValueError."""
    name, *options = text.split(";")
    found: dict[str, str] = {}
    for option in options:
        key, equals, value = option.strip().partition("=")
        if key not in ("tenant", "role") or not equals or key in found:
            raise ValueError(f"{text!r}: {option!r} must be tenant=NAME or role=ROLE, each once")
        found[key] = value
    role = found.get("role", ROLES[0])
    if role not in ROLES:
        raise ValueError(f"{text!r}: the role must be one of {', '.join(ROLES)}")
    if "tenant" in found and not _TENANT.fullmatch(found["tenant"]):
        raise ValueError(f"{text!r}: the tenant must be printable ASCII text without spaces")
    if not name.strip():
        raise ValueError(f"{text!r}: the text before the first semicolon is missing")
    return NamedIdentity(name.strip(), found.get("tenant", ""), role)


def parse_listen(text: str) -> NamedIdentity:
    """Splits an address to listen at; only a Unix socket may have a tenant. Raises ValueError."""
    parsed = parse(text)
    if ";" in text and not (text.startswith("unix:") and parsed.tenant):
        raise ValueError(f"{text!r}: only unix:PATH may have a role, and it needs a tenant")
    return parsed
