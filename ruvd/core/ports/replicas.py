"""The contract of the replicas: the daemons that share a store, as far as one of them is asked."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from ruvd.core import tenants
from ruvd.core.errors import SessionBusy
from ruvd.core.ports.tenant_usage import UsageExchange
from ruvd.core.values import value


@value(frozen=True, slots=True)
class Replica:
    """A daemon that shares the store. Others reach it at `address`, if it has one."""

    id: str
    address: str = ""


class SessionElsewhere(SessionBusy):
    """Another daemon that shares the store has a turn in the session: the `owner`.

    It is None if that one has given the session back meanwhile. `interrupts` says that the call
    wants to interrupt the turn. With a `completion_id` the call repeats that completion, whose
    events another daemon may have. Callers see a SessionBusy.
    """

    def __init__(
        self,
        session_id: str,
        owner: Replica | None = None,
        *,
        interrupts: bool = False,
        completion_id: str = "",
    ) -> None:
        super().__init__(
            f"session {tenants.own(session_id)!r} has a completion running at another replica"
        )
        self.session_id = session_id
        self.owner = owner
        self.interrupts = interrupts
        self.completion_id = completion_id

    @classmethod
    def reason(cls) -> str:
        """Returns the reason that callers see."""
        return SessionBusy.reason()


class SessionChanged(Exception):
    """Another daemon that shares the store has changed the session since it was read."""


class Replicas(Protocol):
    """The other replicas whose leases last, and the sessions that they have.

    Every method raises StoreUnavailable while the store cannot be asked.
    """

    @property
    def me(self) -> str:
        """The id of this replica. It is new with each process."""

    async def announce(self, address: str) -> None:
        """Makes `address` the one at which others reach this replica.

        A replica that had the address before is gone, so its sessions are free.
        """

    def prefer_last_owner(self) -> None:
        """Makes turns raise SessionElsewhere if another living replica has had the session last.

        Its engine has the session's KV state then.
        """

    def stay(self, session_id: str) -> None:
        """Makes the next turn of the session begin here, whoever has had it last."""

    def keep_while(self, is_awaited: Callable[[str], bool]) -> None:
        """Keeps sessions for which `is_awaited` is true: further turns wait for them here.

        A write gives the other sessions back, so that any replica may begin the next turn.
        """

    def unused(self, session_id: str) -> None:
        """Says that nobody uses the session here any more, so that it need not be kept."""

    def share_usage(self, exchange: UsageExchange) -> None:
        """Tells the others what tenants use here, and learns from them, with each renewal."""

    async def others(self) -> Sequence[Replica]:
        """Returns the other replicas whose leases last."""

    async def owner(self, session_id: str) -> Replica | None:
        """Returns the other living replica that has a turn in the session, or None."""

    async def claim(self, session_id: str) -> None:
        """Claims a session for the turn that creates it, until it is created.

        Raises SessionElsewhere if another living replica has claimed or created it.
        """

    async def give_up_claim(self, session_id: str) -> None:
        """Ends a claim of this replica, as the turn has failed. Idempotent."""

    async def release(self, session_id: str, owner: str) -> None:
        """Takes a session from its owner. What that one still wants to write is refused."""


@runtime_checkable
class SharesStore(Protocol):
    """A store that several daemons may share."""

    replicas: Replicas
