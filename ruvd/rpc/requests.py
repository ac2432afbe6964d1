"""Conversion of requests: each proto is validated and becomes a value of the core.

Every function raises InvalidRequest, naming every wrong field, or PermissionDenied, naming every
field that the caller's tenant may not use.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ruvd.core import model
from ruvd.core.completions.allowances import denied, is_allowed
from ruvd.core.completions.completion import CompletionRef, CompletionRequest
from ruvd.core.errors import InvalidRequest, PermissionDenied, RuvdError
from ruvd.core.model import Role
from ruvd.core.sessions.commands import NewFork, SessionChanges
from ruvd.core.sessions.model import HistoryPage, NewMessages, NewSession, SessionPolicy
from ruvd.rpc import convert, option_validation, pages, validation, window_validation
from ruvd.rpc.identity import caller
from ruvd.rpc.identity.caller import scoped_id, scoped_request_id
from ruvd.rpc.peers import routing
from ruvd.rpc.validation import ID_RULE, Checker, RequestLimits
from ruvd.v1 import session_service_pb2 as pb

_MAX_PAGE = 1000
_DEFAULT_PAGE = 100
_MAX_UNPAGED = 10_000  # messages in a response without paging
MAX_ITEMS = 10_000
_ITEMS_AT_ONCE = 100
_MAX_CURSOR = 2**63
_UPDATABLE = {"labels", "idle_timeout", "context_window", "compaction_instruction"}


def create_session(
    request: pb.CreateSessionRequest, limits: RequestLimits, policy: SessionPolicy
) -> NewSession:
    """Converts CreateSession; the policy has the defaults of its context window."""
    check = Checker(request, limits)
    if request.session_id:
        check.check(validation.is_id(request.session_id), "session_id", ID_RULE)
    messages = validation.messages(check, request.messages, history=True)
    validation.text(check, "system_prompt", request.system_prompt)
    if messages and messages[0].role is Role.SYSTEM:
        check.check(not request.system_prompt, "system_prompt", "messages[0] is one already")
    validation.labels(check, "labels", request.labels)
    window = None
    if request.HasField("context_window"):
        window = window_validation.window(check, request.context_window, policy.context_window)
    idle = validation.idle_timeout(check, request)
    validation.model_name(check, "model", request.model)
    models = limits.limits_of(caller.tenant()).models
    if request.model and not is_allowed(request.model, models):
        check.deny([denied("model", "model", request.model)])
    validation.request_id(check, request.request_id)
    instruction = window_validation.instruction(check, request)
    summary, summary_exchange_count = window_validation.summary(check, request)
    check.raise_if_wrong()
    system_prompt = request.system_prompt
    if messages and messages[0].role is Role.SYSTEM:
        system_prompt, messages = messages[0].content, messages[1:]
    return NewSession(
        session_id=scoped_id(request.session_id),
        system_prompt=system_prompt,
        messages=messages,
        labels=dict(request.labels),
        context_window=window,
        idle_timeout_seconds=idle,
        model=request.model,
        request_id=scoped_request_id(request.request_id),
        tenant=caller.tenant(),
        compaction_instruction=instruction,
        summary=summary,
        summary_exchange_count=summary_exchange_count,
    )


def complete(request: pb.CompleteRequest, limits: RequestLimits) -> CompletionRequest:
    """Converts Complete."""
    check = Checker(request, limits)
    session_id = request.session_id
    if session_id:
        check.check(validation.is_id(session_id), "session_id", ID_RULE)
    messages = validation.messages(check, request.messages, history=False)
    # Without messages the session's history must end with one to answer; the turn checks that.
    check.check(bool(messages or session_id), "messages", "must not be empty")
    validation.text(check, "system_prompt", request.system_prompt)
    if messages and messages[0].role is Role.SYSTEM:
        check.check(not request.system_prompt, "system_prompt", "messages[0] is one already")
    for flag in ("require_existing", "recreate_if_gone"):
        check.check(bool(session_id) or not getattr(request, flag), flag, "needs a session_id")
    options = option_validation.options(check, request.options)
    validation.request_id(check, request.request_id)
    if_busy = convert.IF_BUSY.get(request.if_busy)
    check.check(if_busy is not None, "if_busy", "is not a known value")
    on_disconnect = convert.ON_DISCONNECT.get(request.on_disconnect)
    check.check(on_disconnect is not None, "on_disconnect", "is not a known value")
    grace = 0.0
    if request.HasField("disconnect_grace"):
        grace = request.disconnect_grace.ToNanoseconds() / 1e9
        most = limits.max_grace_seconds
        check.check(0 <= grace <= most, "disconnect_grace", f"must be 0 to {most:g} s")
    check.raise_if_wrong()
    return CompletionRequest(
        messages=messages,
        session_id=scoped_id(session_id),
        options=options,
        request_id=scoped_request_id(request.request_id),
        system_prompt=request.system_prompt,
        require_existing=request.require_existing,
        recreate_if_gone=request.recreate_if_gone,
        if_busy=if_busy or model.IfBusy.QUEUE,
        on_disconnect=on_disconnect or model.OnDisconnect.CANCEL,
        grace_seconds=grace,
        tenant=caller.tenant(),
        may_move=routing.may_move(),
    )


async def batch_complete(
    request: pb.BatchCompleteRequest, limits: RequestLimits
) -> Sequence[CompletionRequest | RuvdError]:
    """Converts each item of BatchComplete, or returns the item's error in its place.

    Raises InvalidRequest only for fields of the call itself.
    """
    check = Checker(request, limits)
    count = len(request.items)
    check.check(count <= MAX_ITEMS, "items", f"{count} are more than {MAX_ITEMS}; split them")
    check.check(request.max_concurrency >= 0, "max_concurrency", "must not be negative")
    check.raise_if_wrong()
    items: list[CompletionRequest | RuvdError] = []
    for index, item in enumerate(request.items):
        if index % _ITEMS_AT_ONCE == 0:
            await asyncio.sleep(0)  # 10,000 items take 0.3 s, in which others are to be served
        try:
            items.append(complete(item, limits))
        except (InvalidRequest, PermissionDenied) as error:
            items.append(error)
    return items


def update_session(
    request: pb.UpdateSessionRequest, limits: RequestLimits, policy: SessionPolicy
) -> tuple[str, SessionChanges]:
    """Converts UpdateSession; the policy has the defaults of masked fields that are unset."""
    check = Checker(request, limits)
    check.check(validation.is_id(request.session_id), "session_id", ID_RULE)
    mask = set(request.update_mask.paths)
    for path in sorted(mask - _UPDATABLE):
        check.refuse(
            "update_mask", f"{path!r} cannot be updated; {', '.join(sorted(_UPDATABLE))} can"
        )
    if not mask:
        mask = {field.name for field, _ in request.ListFields()} & _UPDATABLE
        check.check(bool(mask), "update_mask", "names nothing to update")
    validation.labels(check, "labels", request.labels)
    idle = validation.idle_timeout(check, request)
    window = window_validation.window(check, request.context_window, policy.context_window)
    instruction = window_validation.instruction(check, request)
    check.raise_if_wrong()
    return scoped_id(request.session_id), SessionChanges(
        labels=dict(request.labels) if "labels" in mask else None,
        idle_timeout_seconds=(idle or policy.idle_timeout_seconds)
        if "idle_timeout" in mask
        else None,
        context_window=window if "context_window" in mask else None,
        compaction_instruction=instruction if "compaction_instruction" in mask else None,
    )


def append_messages(request: pb.AppendMessagesRequest, limits: RequestLimits) -> NewMessages:
    """Converts AppendMessages."""
    check = Checker(request, limits)
    check.check(validation.is_id(request.session_id), "session_id", ID_RULE)
    messages = validation.messages(check, request.messages, history=True)
    summary, summary_exchange_count = window_validation.summary(check, request)
    check.check(bool(messages or summary), "messages", "must not be empty without a summary")
    if messages and messages[0].role is Role.SYSTEM:
        check.refuse("messages[0].role", "a session's system prompt is set when it is created")
    validation.request_id(check, request.request_id)
    check.raise_if_wrong()
    request_id = scoped_request_id(request.request_id)
    return NewMessages(messages, request_id, summary, summary_exchange_count)


def fork_session(request: pb.ForkSessionRequest, limits: RequestLimits) -> NewFork:
    """Converts ForkSession."""
    check = Checker(request, limits)
    check.check(validation.is_id(request.session_id), "session_id", ID_RULE)
    if request.new_session_id:
        check.check(validation.is_id(request.new_session_id), "new_session_id", ID_RULE)
    count = request.exchange_count if request.HasField("exchange_count") else None
    check.check(count is None or count >= 0, "exchange_count", "must not be negative")
    validation.request_id(check, request.request_id)
    check.raise_if_wrong()
    return NewFork(
        scoped_id(request.session_id),
        count,
        scoped_id(request.new_session_id),
        scoped_request_id(request.request_id),
    )


def completion_ref(
    request: pb.ResumeCompletionRequest | pb.CancelCompletionRequest, limits: RequestLimits
) -> CompletionRef:
    """Converts the reference to a completion in a request."""
    check = Checker(request, limits)
    if request.completion_id:
        for field in ("session_id", "request_id"):
            check.check(not getattr(request, field), field, "is not used with a completion_id")
    elif not request.request_id:
        check.refuse("completion_id", "name the completion, or its session_id and request_id")
    if isinstance(request, pb.ResumeCompletionRequest):
        check.check(request.after_sequence >= 0, "after_sequence", "must not be negative")
    check.raise_if_wrong()
    return CompletionRef(
        scoped_id(request.completion_id),
        scoped_id(request.session_id),
        scoped_request_id(request.request_id),
    )


def get_session(request: pb.GetSessionRequest, limits: RequestLimits) -> HistoryPage | None:
    """Converts GetSession to the page of the history that it returns, None for no messages."""
    check = Checker(request, limits)
    check.check(validation.is_id(request.session_id), "session_id", ID_RULE)
    check.check(request.view in pb.SessionView.values(), "view", "is not a known view")
    full, size = request.view == pb.SESSION_VIEW_FULL, request.page_size
    check.check(0 <= size <= _MAX_PAGE, "page_size", f"must be 0 to {_MAX_PAGE}")
    check.check(full or not size, "page_size", "is allowed only with SESSION_VIEW_FULL")
    check.check(size > 0 or not request.page_token, "page_size", "must be set with a page_token")
    parts = request.allow_message_parts
    check.check(size > 0 or not parts, "page_size", "must be set with allow_message_parts")
    page = _history_page(request.page_token)
    check.check(page is not None, "page_token", "is not a next_page_token of this daemon")
    begins_within = page is not None and page.offset > 0
    text = "must be set as for the page before"
    check.check(parts or not begins_within, "allow_message_parts", text)
    check.raise_if_wrong()
    if not full or page is None:
        return None
    max_bytes = pages.MAX_RESPONSE_BYTES
    return replace(page, max_messages=size or _MAX_UNPAGED, max_bytes=max_bytes)


def session_id(
    request: pb.EndSessionRequest | pb.CompactSessionRequest, limits: RequestLimits
) -> str:
    """Returns the session id of a request."""
    check = Checker(request, limits)
    check.check(validation.is_id(request.session_id), "session_id", ID_RULE)
    check.raise_if_wrong()
    return scoped_id(request.session_id)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list."""

    after: int
    limit: int
    labels: Mapping[str, str]


def list_sessions(request: pb.ListSessionsRequest, limits: RequestLimits) -> Page:
    """Converts ListSessions."""
    check = Checker(request, limits)
    size = request.page_size
    check.check(0 <= size <= _MAX_PAGE, "page_size", f"must be 0 to {_MAX_PAGE}")
    after = _cursor(request.page_token)
    check.check(after is not None, "page_token", "is not a next_page_token of this daemon")
    validation.labels(check, "label_filter", request.label_filter)
    check.raise_if_wrong()
    return Page(after or 0, size or _DEFAULT_PAGE, dict(request.label_filter))


def _cursor(token: str) -> int | None:
    """Returns the cursor of a page token: 0 for the first page, None for a foreign token."""
    if not token:
        return 0
    try:
        cursor = int(pages.read_token(token))
    except ValueError:
        return None
    return cursor if 0 < cursor < _MAX_CURSOR else None


def _history_page(token: str) -> HistoryPage | None:
    """Returns the page of a page token of GetSession; None for a foreign token."""
    if not token:
        return HistoryPage()
    try:
        position, created = pages.read_token(token).split("@")
        first, _, offset = position.partition("+")
        page = HistoryPage(int(first), float.fromhex(created), offset=int(offset or 0))
    except (ValueError, OverflowError):
        return None
    is_in_range = 0 <= page.first < _MAX_CURSOR and 0 <= page.offset < _MAX_CURSOR
    return page if is_in_range and (page.first or page.offset) else None
