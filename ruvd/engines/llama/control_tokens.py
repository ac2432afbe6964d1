"""The names of control tokens are broken up in messages, so that all that is said stays text.

llama.cpp's server writes the messages into the template and then tokenizes the whole, so that
`<|im_end|>` in a user's text would end the user's message
(https://github.com/ggml-org/llama.cpp/issues/28249). It has no switch for that. So an invisible
character is put after the first character of each such name, in what is sent and not in the
history. It is always put in the same way, so a prompt still begins with the prompt before it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import msgspec

from ruvd.core.model import Message, Role, ToolCall
from ruvd.engines.llama.vocabulary import Vocabulary

# It has no width and is no part of a control token. The model sees it as a token of its own.
BREAK = "\u200b"

# A name in angle or square brackets, as templates write them: <|im_end|>, [INST], <start_of_turn>.
_MARKER = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]{2,32}\]|<<[^<>\s]{1,32}>>")
# Markers that templates put together from parts, such as '<|' + role + '|>'.
_ANY_ROLE = re.compile(r"<(?=[|\uff5c][^\s|\uff5c<>]{1,64}[|\uff5c]>)")


class _Names:
    """A set of names that are to be broken up in texts."""

    def __init__(self, names: Iterable[str]) -> None:
        # A single character cannot be broken up.
        self._names = frozenset(name for name in names if len(name.strip()) > 1)
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)
        starts = "".join(sorted({re.escape(name[0]) for name in self._names}))
        self._start = re.compile(f"[{starts}]") if starts else None

    def broken_up(self, text: str) -> str:
        """Returns a text without any of the names."""
        while positions := {*self._positions(text)}:
            at, parts = 0, []
            for position in sorted(positions):
                parts.append(text[at : position + 1])
                at = position + 1
            text = BREAK.join([*parts, text[at:]])
        return text

    def _positions(self, text: str) -> Iterator[int]:
        """Yields the positions at which a name begins."""
        for found in _ANY_ROLE.finditer(text):
            yield found.start()
        for found in self._start.finditer(text) if self._start else ():
            at = found.start()
            if any(text[at : at + length] in self._names for length in self._lengths):
                yield at


class ControlTokens:
    """The control tokens of a model, and the markers of its chat template.

    In the model's own answers only control tokens are broken up: templates look for some markers
    there, such as the end of the reasoning.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        template, control = vocabulary.template, vocabulary.control
        markers = [name for name in vocabulary.user_defined if _is_marker(name, template)]
        self._control = _Names(control)
        self._all = _Names([*control, *markers, *_MARKER.findall(template)])

    def broken_up(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Returns the messages with no control token in their texts."""
        return [self._message(message) for message in messages]

    def _message(self, message: Message) -> Message:
        names = self._control if message.role is Role.ASSISTANT else self._all
        content = names.broken_up(message.content)
        calls = tuple(map(self._call, message.tool_calls))
        if content == message.content and calls == message.tool_calls:
            return message
        return replace(message, content=content, tool_calls=calls)

    def _call(self, call: ToolCall) -> ToolCall:
        """Breaks up names in the arguments, which the template may write with other escapes."""
        try:
            text = msgspec.json.encode(msgspec.json.decode(call.arguments)).decode()
        except (msgspec.MsgspecError, RecursionError):
            text = call.arguments
        broken_up = self._all.broken_up(text)
        return call if broken_up == text else replace(call, arguments=broken_up)


def _is_marker(name: str, template: str) -> bool:
    """Whether a user-defined token marks parts of a prompt, and is no common text."""
    return _ANY_ROLE.match(name) is not None or (
        _MARKER.fullmatch(name) is not None and name in template
    )
