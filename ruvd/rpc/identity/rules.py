"""Rules that give a tenant and a role to the name in a credential.

In a rule's pattern `*` stands for any text without a slash and `**` for any text; everything else
stands for itself. Without a tenant the name is the tenant, so that SPIFFE ids and subjects work as
they are.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ruvd.core.text import name_pattern
from ruvd.rpc.identity.caller import Identity, Role

_TENANT = re.compile(r"[\x21-\x7e]{1,255}")


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    tenant: str
    role: Role


class IdentityRules:
    """The rules, in order: the first whose pattern matches the whole name counts."""

    def __init__(self, rules: Iterable[Sequence[str]], credential: str = "") -> None:
        """Each rule is a pattern, a tenant or "", and the name of a role.

        `credential` is the kind of credential that the names are from.
        """
        self._credential = credential
        self._rules = [
            _Rule(name_pattern(pattern), tenant, Role(role)) for pattern, tenant, role in rules
        ]

    def identify(self, name: str, tenant: str = "") -> Identity | None:
        """Returns the identity of a name, None if no rule matches it.

        `tenant` is that of a rule without one, instead of the name. A name that is no printable
        ASCII text of up to 255 characters without spaces cannot be a tenant.
        """
        for rule in self._rules:
            if rule.pattern.fullmatch(name):
                chosen = rule.tenant or tenant or name
                if not _TENANT.fullmatch(chosen):
                    return None
                return Identity(chosen, rule.role, name, self._credential)
        return None
