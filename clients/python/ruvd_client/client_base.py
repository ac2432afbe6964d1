"""The methods that do not wait, common to both clients.

The unary calls are written twice, in `client` and `async_client`, because the type system cannot
express that a method is awaited in one class and not in the other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Generic, TypeVar, Unpack

from ruvd_client.addresses import Address, count_attempts, parse_addresses
from ruvd_client.answers import RECONNECT_SECONDS, Answer, Request, resumable
from ruvd_client.batch_calls import MAX_CALL_BYTES, BatchCalls
from ruvd_client.batch_calls import RECONNECT_SECONDS as BATCH_RECONNECT_SECONDS
from ruvd_client.protocol import DEFAULT_ADDRESS, CompleteArguments, Messages, complete_request
from ruvd_client.security import Credential, Tls, Token, find_credential, find_tls
from ruvd_client.v1 import session_service_pb2 as pb

AnyCompletion = TypeVar("AnyCompletion")
AnyBatch = TypeVar("AnyBatch")
AnyItems = TypeVar("AnyItems")


class BaseClient(Generic[AnyCompletion, AnyItems, AnyBatch]):
    """The methods that do not wait, common to both clients."""

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        reconnect_seconds: float = RECONNECT_SECONDS,
        token: Token | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Creates a client, which connects at its first call.

        `address` is `host:port` or `unix:PATH`, by default RUVD_ADDRESS or 127.0.0.1:50051. It may
        be a list with commas: the client uses one, and goes on with the next if that fails.
        `timeout`, in seconds, applies to every unary call; without it, `service_config.json` sets
        the timeouts and retries of the calls listed there. `metadata` is sent with every call,
        together with the current trace context if the process uses OpenTelemetry. A broken stream
        is resumed for up to `reconnect_seconds`.

        `token` is sent as a bearer token with every call: a str (none if it is empty), a Path whose
        file is read for every call, or a function that is called for every call. By default it is
        in the file RUVD_TOKEN_FILE, or else in RUVD_TOKEN. `tls` is for a daemon that listens with
        TLS, by default RUVD_TLS_CA_FILE and the like; its files are read now. Raises OSError if
        such a file cannot be read, and ValueError if it cannot be used, if a token would be sent to
        another machine without TLS, or if an address of a list is wrong.
        """
        self.address = address or os.environ.get("RUVD_ADDRESS") or DEFAULT_ADDRESS
        self._timeout = timeout
        self._reconnect_seconds = reconnect_seconds
        addresses = parse_addresses(self.address)
        self._attempts_per_round = count_attempts(addresses)
        tls = find_tls(addresses, tls)
        self._connect(addresses, metadata, find_credential(addresses, token, tls), tls)

    def complete(
        self,
        messages: Messages,
        *,
        timeout: float | None = None,
        **arguments: Unpack[CompleteArguments],
    ) -> AnyCompletion:
        """Starts a completion of the new messages, stateless if there is no `session_id`.

        If the connection breaks, the answer continues after a reconnect, within the client's
        `reconnect_seconds`. `timeout`, in seconds, limits the whole answer.
        """
        return self._answer(resumable(complete_request(messages, arguments)), timeout)

    def batch(
        self,
        items: AnyItems,
        *,
        max_concurrency: int = 0,
        timeout: float | None = None,
        max_call_bytes: int = MAX_CALL_BYTES,
        reconnect_seconds: float = BATCH_RECONNECT_SECONDS,
    ) -> AnyBatch:
        """Starts a batch, whose outcomes are returned in the order in which the items end.

        An item is a `request(...)`, or a str for one user message. Items are sent in calls of at
        most `max_call_bytes` and 10,000 items, one call after the other, and are taken from `items`
        only for the next call. An item larger than that is sent alone; if the daemon rejects it,
        the error is its outcome. `max_concurrency` 0 is the daemon's default. `timeout`, in
        seconds, limits the whole batch. If the daemon stops, the unfinished items are repeated when
        it is back; after `reconnect_seconds` without it, iterating raises RuvdError.
        """
        calls = BatchCalls(
            max_concurrency, timeout, max_call_bytes, reconnect_seconds, self._attempts_per_round
        )
        return self._batch(items, calls)

    def resume_completion(
        self,
        completion_id: str = "",
        *,
        session_id: str = "",
        request_id: str = "",
        after_sequence: int = 0,
        timeout: float | None = None,
    ) -> AnyCompletion:
        """Reads a completion from the event after `after_sequence` on.

        It is identified by its id, or by the session and the request id with which it was started.
        Leaving it early stops it, as with `complete`.
        """
        request = pb.ResumeCompletionRequest(
            completion_id=completion_id,
            session_id=session_id,
            request_id=request_id,
            after_sequence=after_sequence,
        )
        return self._answer(request, timeout)

    def _answer(self, request: Request, timeout: float | None) -> AnyCompletion:
        answer = Answer(
            request,
            timeout=timeout,
            reconnect_seconds=self._reconnect_seconds,
            attempts_per_round=self._attempts_per_round,
        )
        return self._completion(answer)

    def _connect(
        self,
        addresses: tuple[Address, ...],
        metadata: Sequence[tuple[str, str]],
        credential: Credential | None,
        tls: Tls | None,
    ) -> None:
        raise NotImplementedError

    def _completion(self, answer: Answer) -> AnyCompletion:
        raise NotImplementedError

    def _batch(self, items: AnyItems, calls: BatchCalls) -> AnyBatch:
        raise NotImplementedError
