"""The parts of a message's content: text and reasoning, in each form in which servers send them."""

from collections.abc import Iterator
from typing import Any

from ruvd.core.ports.engine import EngineReasoning, EngineText
from ruvd.engines.chat.chunks import valid_text

_REASONING = ("thinking", "reasoning", "reasoning_content")
_TEXT = ("text", "content", "value", "refusal", "output_text", "summary")


def content_parts(content: Any, *, thinks: bool = False) -> Iterator[EngineText | EngineReasoning]:
    """Yields the parts of a `content`: a text, a part, or a list of parts (Mistral's Magistral).

    A part whose type names thinking or reasoning is reasoning, also what is inside it. Parts of
    other types have no text (an image, a reference) and are left out.
    """
    if isinstance(content, str):
        if content:
            yield EngineReasoning(content) if thinks else EngineText(content)
    elif isinstance(content, list):
        for part in content:
            yield from content_parts(part, thinks=thinks)
    elif isinstance(content, dict):
        kind = str(content.get("type") or "")
        inner = next((content[name] for name in _REASONING if content.get(name)), None)
        thinks = thinks or inner is not None or "think" in kind or "reason" in kind
        if inner is None:
            inner = next((content[name] for name in _TEXT if content.get(name)), None)
        yield from content_parts(inner, thinks=thinks)


def unusual_text(chunk: Any) -> str:
    """Returns the text of a chunk in which no known field has one: a delta or a message that is a
    text, or a text inside them or beside them under another name."""
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return ""
    for place in (choice.get("delta"), choice.get("message"), choice):
        if isinstance(place, str):
            return place
        names = ("content", "output_text") if place is choice else ("text", "output_text")
        if isinstance(place, dict):
            texts = (place.get(name) for name in names)
            if text := next((text for text in texts if text and isinstance(text, str)), ""):
                return text
    return ""


class RepeatedText:
    """The text of messages that a server sends whole, each perhaps with all that came before.

    Before a message, texts may have come as deltas (`count`). Then a message only adds what goes
    beyond them.
    """

    def __init__(self) -> None:
        self._text = ""
        self._counted = 0
        self._beginning = ""

    def count(self, text: str) -> None:
        """Counts a text that came as a delta."""
        self._beginning = self._beginning or text
        self._counted += len(text)

    def more(self, text: str, *, is_last: bool) -> str:
        """Returns what is new in a message's text; `is_last` if it came with a finish reason."""
        if self._counted:
            goes_on = len(text) > self._counted and text.startswith(self._beginning)
            new = text[self._counted :] if goes_on else ""
            self._counted += len(new)
            return new
        if text.startswith(self._text) and (is_last or len(text) > len(self._text)):
            new, self._text = text[len(self._text) :], text
            return new
        self._text += text
        return text


class SplitCharacters:
    """Joins characters that a server has cut into two halves of a surrogate pair.

    A half that is left alone becomes U+FFFD.
    """

    def __init__(self) -> None:
        self.pending = ""

    def join(self, text: str) -> str:
        """Returns the text with the half from the one before, and without a half at its end."""
        if text.isascii() and not self.pending:
            return text
        text, self.pending = self.pending + text, ""
        if "\ud800" <= text[-1] <= "\udbff":
            text, self.pending = text[:-1], text[-1]
        return valid_text(text)
