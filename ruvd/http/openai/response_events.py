"""The events of a response, made from the numbered events of its completion.

An event of a completion becomes several of a response, so the number of the n-th of them is 1000
times the event's own number, and n. So every reader sees the same numbers, and one that has been
cut off goes on after the last that it has seen, also when only the end is still kept.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from ruvd.core.model import CompletionEvent, Delta, Finished, Message, Started, ToolCallDelta
from ruvd.http.openai.items import (
    call_item,
    call_item_id,
    message_item,
    reasoning_item,
    reasoning_part,
    text_part,
    written,
)

STRIDE = 1000
Event: TypeAlias = dict[str, Any]


class _Item:
    """An item of the output while it grows; its events are the kind's."""

    def __init__(self, kind: str, item_id: str, index: int, call: ToolCallDelta | None) -> None:
        self.kind = kind
        self.id = item_id
        self.index = index
        self.pieces: list[str] = []
        self.call = call
        self.has_gone_on = False  # after it was done, so that it is done again with the answer

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)

    @property
    def place(self) -> Event:
        """The fields that say where in the output an event belongs."""
        place: Event = {"item_id": self.id, "output_index": self.index}
        return place if self.kind == "call" else place | {"content_index": 0}

    def part(self, text: str) -> Event:
        """Returns the item's part of content."""
        return reasoning_part(text) if self.kind == "reasoning" else text_part(text)

    def item(self, status: str) -> Event:
        """Returns the item itself."""
        is_done = status == "completed"
        if self.call is not None:
            arguments = self.text if is_done else ""
            return call_item(self.id, self.call.id, self.call.name, arguments, status)
        parts = [self.part(self.text)] if is_done else []
        if self.kind == "reasoning":
            return reasoning_item(self.id, parts, status)
        return message_item(self.id, parts, status=status)


_DELTAS = {
    "text": "response.output_text",
    "reasoning": "response.reasoning_text",
    "call": "response.function_call_arguments",
}


class ResponseEvents:
    """Makes the events of one response.

    `response` returns the response object with a status, an output, and the answer if it has ended.
    """

    def __init__(
        self, name: str, response: Callable[[str, list[Event], Finished | None], Event]
    ) -> None:
        self._name = name
        self._response = response
        self._items: dict[str, _Item] = {}  # by their ids, in their order
        self._open: _Item | None = None
        self._has_begun = False

    def events(self, event: CompletionEvent) -> Iterator[Event]:
        """Yields the events of the response for one of the completion, with their numbers."""
        for number, each in enumerate(self._events(event.event)):
            yield {**each, "sequence_number": event.sequence * STRIDE + min(number, STRIDE - 1)}

    def failed(self, error: Event, last_sequence: int, status: str) -> Event:
        """Returns the event of a failure after the last event of the completion."""
        response = self._response(status, [], None) | {"error": error}
        number = (last_sequence + 1) * STRIDE
        return {"type": "response.failed", "response": response, "sequence_number": number}

    def _events(self, event: Started | Delta | Finished) -> Iterator[Event]:
        yield from self._begin()
        match event:
            case Delta(tool_call=ToolCallDelta() as call):
                yield from self._call(call)
            case Delta(reasoning=reasoning) if reasoning:
                yield from self._grow("reasoning", f"rs_{self._name}", reasoning)
            case Delta(text=text) if text:
                yield from self._grow("text", f"msg_{self._name}", text)
            case Finished():
                yield from self._finish(event)
            case _:
                pass

    def _begin(self) -> Iterator[Event]:
        if not self._has_begun:
            self._has_begun = True
            for name in ("created", "in_progress"):
                response = self._response("in_progress", [], None)
                yield {"type": f"response.{name}", "response": response}

    def _grow(
        self, kind: str, item_id: str, text: str, call: ToolCallDelta | None = None
    ) -> Iterator[Event]:
        item = self._items.get(item_id)
        if item is None:
            yield from self._close()
            item = _Item(kind, item_id, len(self._items), call)
            self._items[item_id] = item
            yield _added(item, "added", "in_progress")
            if kind != "call":
                yield {"type": "response.content_part.added", **item.place, "part": item.part("")}
        elif item is not self._open:  # an engine goes on with an item that another has followed
            yield from self._close()
            item.has_gone_on = True
        self._open = item
        if text:
            item.pieces.append(text)
            delta = {"type": f"{_DELTAS[kind]}.delta", **item.place, "delta": text}
            yield delta | ({"logprobs": []} if kind == "text" else {})

    def _call(self, call: ToolCallDelta) -> Iterator[Event]:
        yield from self._grow("call", call_item_id(self._name, call.index), call.arguments, call)

    def _close(self) -> Iterator[Event]:
        """Ends the item that is growing."""
        item, self._open = self._open, None
        if item is not None and not item.has_gone_on:
            yield from self._end(item)

    def _end(self, item: _Item) -> Iterator[Event]:
        text = item.text
        done: Event = {"type": f"{_DELTAS[item.kind]}.done", **item.place}
        if item.call is not None:
            yield done | {"arguments": text, "name": item.call.name}
        else:
            yield done | {"text": text} | ({"logprobs": []} if item.kind == "text" else {})
            yield {"type": "response.content_part.done", **item.place, "part": item.part(text)}
        yield _added(item, "done", "completed")

    def _finish(self, finished: Finished) -> Iterator[Event]:
        yield from self._missed(finished.message)
        yield from self._close()
        for item in self._items.values():
            if item.has_gone_on:
                yield from self._end(item)
        output = written(finished.message, self._name)
        output.sort(key=lambda item: self._items[item["id"]].index)  # as they were added
        response = self._response("", output, finished)
        yield {"type": f"response.{response['status']}", "response": response}

    def _missed(self, message: Message) -> Iterator[Event]:
        """Yields what the events did not have: those of a repeated call, or of a slow reader."""
        known = {item.id: len(item.text) for item in self._items.values()}
        for kind, item_id, text in (
            ("reasoning", f"rs_{self._name}", message.reasoning),
            ("text", f"msg_{self._name}", message.content),
        ):
            rest = text[known.get(item_id, 0) :]
            # An answer that says nothing and calls nothing has an item with an empty text.
            is_empty = kind == "text" and item_id not in known and not message.tool_calls
            if rest or is_empty:
                yield from self._grow(kind, item_id, rest)
        for index, call in enumerate(message.tool_calls):
            item_id = call_item_id(self._name, index)
            rest = call.arguments[known.get(item_id, 0) :]
            if rest or item_id not in known:
                delta = ToolCallDelta(index, call.id, call.name, rest)
                yield from self._call(delta)


def _added(item: _Item, event: str, status: str) -> Event:
    name = f"response.output_item.{event}"
    return {"type": name, "output_index": item.index, "item": item.item(status)}
