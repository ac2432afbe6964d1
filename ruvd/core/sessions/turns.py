"""The begin of turns in sessions that exist or are to be created."""

import contextlib
from functools import partial

from ruvd.core.errors import SessionsDisabled, StoreUnavailable
from ruvd.core.model import IfBusy
from ruvd.core.ports import room
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.events import Observer, SessionCreationAborted
from ruvd.core.ports.replicas import Replicas, SessionElsewhere
from ruvd.core.ports.store import Store, StoreUsage, TurnSnapshot
from ruvd.core.sessions import shared_store
from ruvd.core.sessions.absence import check_absent
from ruvd.core.sessions.expiry import Expiry
from ruvd.core.sessions.model import NewSession, SessionPolicy, new_session
from ruvd.core.sessions.quotas import SessionQuotas
from ruvd.core.sessions.turn_queue import TurnRequest


class SessionTurns:
    """Begins turns, and ends the creation of sessions whose turn has failed."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        observer: Observer,
        policy: SessionPolicy,
        expiry: Expiry,
        quotas: SessionQuotas,
        replicas: Replicas | None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._observer = observer
        self._policy = policy
        self._expiry = expiry
        self._quotas = quotas
        self._replicas = replicas

    async def begin(
        self,
        session_id: str,
        turn_request: TurnRequest,
        system_prompt: str,
        *,
        request_id: str,
        require_existing: bool,
        recreate_if_gone: bool = False,
        if_busy: IfBusy = IfBusy.QUEUE,
        may_move: bool = False,
    ) -> TurnSnapshot:
        """Begins the turn of a caller that has it, and returns what the turn starts from.

        A session that does not exist is prepared and put into `turn_request.pending_session`.
        Raises SessionNotFound instead with `require_existing`, SessionEvicted or SessionExpired
        without `recreate_if_gone`, and SessionLimit or QuotaExceeded if it has no place. While
        another replica has a turn in the session, the call waits, or raises SessionElsewhere: see
        `shared_store.when_free`.
        """
        if not self._policy.enabled:
            raise sessions_disabled()
        begin = partial(
            self._begin,
            session_id,
            turn_request,
            system_prompt,
            request_id,
            require_existing=require_existing,
            recreate_if_gone=recreate_if_gone,
            may_move=may_move,
        )
        if self._replicas is None:
            return await begin()
        return await shared_store.when_free(begin, if_busy, may_move=may_move)

    async def _begin(
        self,
        session_id: str,
        turn_request: TurnRequest,
        system_prompt: str,
        request_id: str,
        *,
        require_existing: bool,
        recreate_if_gone: bool,
        may_move: bool,
    ) -> TurnSnapshot:
        if self._replicas and not may_move:
            self._replicas.stay(session_id)
        # An eviction of this session may have been on its way to the store before the turn was
        # taken. The store applies it first, because it keeps the order of its calls.
        now = self._clock.now()
        snapshot = await self._store.begin_turn(session_id, request_id, now)
        if snapshot.session is not None:
            turn_request.began = None if snapshot.idempotency_record else now
            return snapshot
        check_absent(
            session_id,
            snapshot.gone,
            require_existing=require_existing,
            recreate_if_gone=recreate_if_gone,
        )
        usage = snapshot.usage or StoreUsage()
        if snapshot.has_expired:
            # Before generation: the engine will cache the new conversation under the same id.
            await self._expiry.remove(session_id)
            usage = room.without(usage, 0)
        turn_request.pending_session = new_session(
            NewSession(session_id, system_prompt), self._policy, now
        )
        try:
            await self._quotas.check_place(session_id, usage)
            if self._replicas:
                await self._replicas.claim(session_id)
        except SessionElsewhere:
            turn_request.pending_session = None
            raise
        return TurnSnapshot(turn_request.pending_session, exchanges=())

    async def creation_aborted(self, session_id: str) -> None:
        """Tells the observer that the turn that would have created the session failed."""
        self._observer(SessionCreationAborted(session_id))
        if self._replicas:
            with contextlib.suppress(StoreUnavailable):  # observed
                await self._replicas.give_up_claim(session_id)


def sessions_disabled() -> SessionsDisabled:
    """Returns the error of a daemon that keeps no sessions."""
    return SessionsDisabled(
        "this daemon keeps no sessions (sessions_enabled is false); "
        "send the whole conversation without a session_id"
    )
