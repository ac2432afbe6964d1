"""`/v1/conversations`: sessions, and their messages as items."""

import re
from dataclasses import dataclass
from typing import Any

from ruvd.core import tenants
from ruvd.core.errors import PermissionDenied
from ruvd.core.model import Message, Session
from ruvd.core.sessions.model import HistoryPage, SessionState
from ruvd.http.openai.calls import Call
from ruvd.http.openai.fields import Fields
from ruvd.http.openai.items import ItemReader, message_item, written
from ruvd.http.openai.lists import read_limit, read_order, written_page
from ruvd.http.openai.parts import Parts
from ruvd.http.openai.response_places import new_conversation_id
from ruvd.http.openai.response_requests import read_metadata
from ruvd.http.refusals import Refused
from ruvd.rpc import auditing, requests, validation
from ruvd.rpc.identity import caller
from ruvd.rpc.identity.caller import scoped_id
from ruvd.rpc.large_responses import SMALL_BYTES, LargeResponses
from ruvd.v1 import session_service_pb2 as pb

_MAX_LIMIT = 100
_MAX_PAGE_BYTES = 3 << 20
# The end of an item's id: the message's position, and a call's number after a point.
_ITEM_ID = re.compile(r"(?:msg|rs|fc|fco)_(\d{1,12}|system)(?:\.\d{1,6})?", re.ASCII)
_SYSTEM = -1  # the position of the system prompt


class Conversations:
    """The operations of conversations."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._large_responses = LargeResponses(parts.memory)

    async def create(self, call: Call) -> None:
        """Creates a session, with items and metadata."""
        fields, body = Fields(), call.body
        items = body.pop("items", None)
        conversation = ItemReader(fields).read([] if items is None else items, "items")
        metadata = read_metadata(fields, body.pop("metadata", None))
        fields.refuse_rest(body, "")
        fields.raise_if_wrong()
        request = pb.CreateSessionRequest(
            session_id=new_conversation_id(),
            system_prompt=conversation.system_prompt,
            messages=conversation.messages,
            labels=metadata,
            request_id=call.header("idempotency-key"),
        )
        if request.request_id:
            request.session_id = ""  # a repeat must ask for the same
        auditing.note_request(request)
        call.rename = _rename(conversation.positions)
        new = requests.create_session(request, self._parts.limits, self._parts.policy)
        state = await self._parts.commands.create(new)
        auditing.note_request(pb.GetSessionRequest(session_id=tenants.own(state.session.id)))
        await call.respond(_written(state))

    async def retrieve(self, call: Call) -> None:
        """Returns a conversation."""
        await call.respond(_written(await self._parts.sessions.get(_session_id(call))))

    async def update(self, call: Call) -> None:
        """Replaces the metadata."""
        fields = Fields()
        if "metadata" not in call.body:
            fields.refuse("metadata", "must be given: it replaces that of before, also if empty")
        metadata = read_metadata(fields, call.body.pop("metadata", None))
        fields.refuse_rest(call.body, "")
        fields.raise_if_wrong()
        request = pb.UpdateSessionRequest(session_id=call.path["conversation"], labels=metadata)
        request.update_mask.paths.append("labels")
        auditing.note_request(request)
        call.rename = _rename([])
        session_id, changes = requests.update_session(
            request, self._parts.limits, self._parts.policy
        )
        await call.respond(_written(await self._parts.commands.update(session_id, changes)))

    async def delete(self, call: Call) -> None:
        """Ends the session."""
        session_id = _session_id(call)
        await self._parts.commands.end(session_id)
        await call.respond(
            {
                "id": tenants.own(session_id),
                "object": "conversation.deleted",
                "deleted": True,
            }
        )

    async def create_items(self, call: Call) -> None:
        """Appends items without an answer."""
        fields, body = Fields(), call.body
        conversation = ItemReader(fields).read(body.pop("items", None), "items")
        if conversation.system_prompt:
            fields.refuse("items[0].role", "a conversation has its system prompt from its creation")
        elif not conversation.messages and not fields.violations:
            fields.refuse("items", "must not be empty")
        fields.refuse_rest(body, "")
        fields.raise_if_wrong()
        request = pb.AppendMessagesRequest(
            session_id=call.path["conversation"],
            messages=conversation.messages,
            request_id=call.header("idempotency-key"),
        )
        auditing.note_request(request)
        call.rename = _rename(conversation.positions)
        new = requests.append_messages(request, self._parts.limits)
        state = await self._parts.commands.add(scoped_id(request.session_id), new)
        first = state.session.message_count - len(new.messages)
        items = [
            item for at, each in enumerate(new.messages, first) for item in written(each, str(at))
        ]
        await call.respond(written_page(items, has_more=False))

    async def list_items(self, call: Call) -> None:
        """Lists items, by default the latest first."""
        _check_sees_content()
        page = _read_page(call)
        session_id = _session_id(call)
        session = (await self._parts.sessions.get(session_id)).session
        size = min(session.size_bytes + len(session.system_prompt), _MAX_PAGE_BYTES)
        if size <= SMALL_BYTES:
            await call.respond(await self._page(session_id, session, page))
            return
        await self._large_responses.hold(size, call)
        async with self._large_responses.build(size):
            listed = await self._page(session_id, session, page)
        await call.respond(listed)

    async def _page(self, session_id: str, session: Session, page: "_Page") -> dict[str, Any]:
        """Returns a page of a list of items."""
        found: list[dict[str, Any]] = []
        if page.after:
            await self._item(session_id, session, page.after, "after")
        at = page.start(session.message_count, has_system=bool(session.system_prompt))
        step = 1 if page.ascending else -1
        last = session.message_count if page.ascending else (-2 if session.system_prompt else -1)
        size = 0
        while at != last and len(found) <= page.limit and size < _MAX_PAGE_BYTES:
            message, items = await self._items(session_id, at, session.system_prompt)
            size += message.size_bytes if message else len(session.system_prompt)
            found += page.follow(items, at)
            at += step
        has_more = len(found) > page.limit or at != last
        return written_page(found[: page.limit], has_more=has_more)

    async def retrieve_item(self, call: Call) -> None:
        """Returns one item."""
        _check_sees_content()
        session_id, item_id = _session_id(call), call.path["item_id"]
        session = (await self._parts.sessions.get(session_id)).session
        await call.respond(await self._item(session_id, session, item_id, "item_id"))

    async def delete_item(self, call: Call) -> None:
        """Refuses to delete an item: a history only grows."""
        _session_id(call)
        text = "a history only grows: fork the session over gRPC, or begin a new conversation"
        raise Refused(405, "not_supported", text, "item_id", allow="GET, HEAD")

    async def _item(
        self, session_id: str, session: Session, item_id: str, param: str
    ) -> dict[str, Any]:
        """Returns an item. Raises Refused if there is none of that id."""
        at = _position(item_id, param)
        if at < session.message_count:
            _, items = await self._items(session_id, at, session.system_prompt)
            for item in items:
                if item["id"] == item_id:
                    return item
        raise _no_item(param)

    async def _items(
        self, session_id: str, at: int, system_prompt: str
    ) -> tuple[Message | None, list[dict[str, Any]]]:
        if at == _SYSTEM:
            if not system_prompt:
                return None, []
            text = {"type": "input_text", "text": system_prompt}
            return None, [message_item("msg_system", [text], role="system")]
        page = HistoryPage(first=at, max_messages=1)
        messages = (await self._parts.sessions.history(session_id, page)).messages or ()
        return (messages[0], written(messages[0], str(at))) if messages else (None, [])


@dataclass(frozen=True, slots=True)
class _Page:
    """A page of a list of items: in order or backwards, after an item or from the beginning."""

    ascending: bool
    limit: int
    after: str

    def start(self, count: int, *, has_system: bool) -> int:
        """Returns the position of the first message."""
        if self.after:
            return _position(self.after, "after")
        if self.ascending:
            return _SYSTEM if has_system else 0
        return count - 1

    def follow(self, items: list[dict[str, Any]], at: int) -> list[dict[str, Any]]:
        """Returns those of a message's items that belong to the page, in its order."""
        items = items if self.ascending else items[::-1]
        ids = [item["id"] for item in items]
        return items[ids.index(self.after) + 1 :] if self.after in ids else items


def _read_page(call: Call) -> _Page:
    limit, ascending = read_limit(call, _MAX_LIMIT), read_order(call) == "asc"
    return _Page(ascending, limit, call.query.get("after", ""))


def _position(item_id: str, param: str) -> int:
    """Returns the position of an item's message. Raises Refused."""
    found = _ITEM_ID.fullmatch(item_id)
    if found is None:
        raise _no_item(param)
    return _SYSTEM if found[1] == "system" else int(found[1])


def _no_item(param: str) -> Refused:
    return Refused(404, "item_not_found", "there is no such item", param)


def _session_id(call: Call) -> str:
    request = pb.GetSessionRequest(session_id=call.path["conversation"])
    if not validation.is_id(request.session_id):
        raise Refused(400, "invalid_request", validation.ID_RULE, "conversation")
    auditing.note_request(request)
    return scoped_id(request.session_id)


def _check_sees_content() -> None:
    if not caller.sees_content():
        raise PermissionDenied("the role reader may not read messages")


def _written(state: SessionState) -> dict[str, Any]:
    session = state.session
    return {
        "id": tenants.own(session.id),
        "object": "conversation",
        "created_at": int(session.create_time),
        "metadata": dict(session.labels),
    }


def _rename(positions: list[int]) -> Any:
    def rename(path: str) -> str:
        def item(found: re.Match[str]) -> str:
            index = int(found[1])
            return f"items[{positions[index] if index < len(positions) else index}]"

        names = {"labels": "metadata", "session_id": "conversation", "system_prompt": "items[0]"}
        if path == "messages":
            return "items"
        head, _, _ = path.partition("[")
        path = names[head] + path[len(head) :] if head in names else path
        return re.sub(r"^messages\[(\d+)\]", item, path)

    return rename
