"""The metadata of a forwarded call: which replica it is for, and who called.

The mark is trusted only at the listener for replicas, whose connections need a replica's
certificate. Every other listener ignores these names, so a caller gains nothing by sending them.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from ruvd.core.errors import Unauthenticated
from ruvd.rpc.identity.caller import Identity, Role

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

# The id of the replica that the call is forwarded to.
_REPLICA = "ruvd-peer-replica"
_BATCH_ITEM = "ruvd-peer-batch-item"
_ROLE = "ruvd-peer-role"
_CREDENTIAL = "ruvd-peer-credential"
# Any text may be in these, so they are sent as bytes.
_TENANT = "ruvd-peer-tenant-bin"
_NAME = "ruvd-peer-name-bin"
# An answer with this in its trailing metadata says that the session is not at this replica.
_STALE = ("ruvd-peer-stale", "1")
STALE: tuple[tuple[str, str], ...] = (_STALE,)
TRACE_HEADERS = ("traceparent", "tracestate")


class Mark(NamedTuple):
    """A mark: the replica that the call is for, and the caller's identity if callers have one.

    An item of a batch is marked as such.
    """

    replica: str
    identity: Identity | None
    is_batch_item: bool = False


def mark(
    replica: str, identity: Identity | None, *, is_batch_item: bool = False
) -> list[tuple[str, str | bytes]]:
    """Returns the metadata of a call that is forwarded for this caller."""
    metadata: list[tuple[str, str | bytes]] = [(_REPLICA, replica)]
    if is_batch_item:
        metadata.append((_BATCH_ITEM, "1"))
    if identity is not None:
        metadata += [
            (_TENANT, identity.tenant.encode()),
            (_ROLE, identity.role.value),
            (_NAME, identity.name.encode()),
            (_CREDENTIAL, identity.credential),
        ]
    return metadata


def read(metadata: Metadata) -> Mark:
    """Returns the mark of a call. Raises Unauthenticated if it has none that is valid."""
    found: dict[str, str] = {}
    for name, value in metadata:
        if name.startswith("ruvd-peer-"):
            with contextlib.suppress(UnicodeDecodeError):
                found[name] = value if isinstance(value, str) else value.decode()
    replica = found.get(_REPLICA, "")
    if not replica:
        raise Unauthenticated("this address is for calls that other replicas forward")
    is_batch_item = _BATCH_ITEM in found
    if _TENANT not in found:
        return Mark(replica, None, is_batch_item)
    try:
        role = Role(found.get(_ROLE, ""))
    except ValueError:
        raise Unauthenticated("the mark of the forwarded call has an unknown role") from None
    name, credential = found.get(_NAME, ""), found.get(_CREDENTIAL, "")
    identity = Identity(found[_TENANT], role, name, credential)
    return Mark(replica, identity, is_batch_item)


def is_stale(trailing: Iterable[tuple[str, str | bytes]]) -> bool:
    """Whether an answer says that the session is not at the replica that was called."""
    return any(pair == _STALE for pair in trailing)
