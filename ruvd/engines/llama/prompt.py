"""The content of a slot as messages, and how much two contents have in common.

The server compares tokens itself, so an error here costs time and never gives a wrong answer.
"""

from dataclasses import dataclass, replace

from ruvd.core.model import Message, Role
from ruvd.core.options import Tool
from ruvd.core.ports.engine import EngineRequest
from ruvd.core.tenants import DEFAULT
from ruvd.core.text import common_beginning

# A shorter common beginning is not worth a save or a restore. These are about 25 tokens, which two
# cores evaluate in a tenth of a second: three times what a save with a restore takes there.
MIN_REUSED_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages and tools of a tenant's prompt. Sizes are characters of the messages."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    tenant: str = DEFAULT

    @property
    def size(self) -> int:
        """The length of all messages."""
        return sum(len(text) for message in self.messages for text in _texts(message))

    def with_answer(self, text: str) -> "Prompt":
        """Returns this prompt followed by an answer."""
        return replace(self, messages=(*self.messages, Message(Role.ASSISTANT, text)))

    def common(self, other: "Prompt") -> int:
        """Returns the length of the beginning that both prompts have in common.

        Prompts of different tenants have nothing in common, as none may be reused for the other.
        """
        if self.tools != other.tools or self.tenant != other.tenant:
            return 0
        total = 0
        for one, two in zip(self.messages, other.messages, strict=False):
            if one.role is not two.role:
                break
            if _texts(one) != _texts(two):
                return total + common_beginning(one.content, two.content)
            total += sum(map(len, _texts(one)))
        return total


def prompt_of(request: EngineRequest) -> Prompt:
    """Returns the prompt of a request."""
    return Prompt(tuple(request.messages), request.options.tools, request.tenant)


def _texts(message: Message) -> tuple[str, ...]:
    """Returns the texts of a message that the server is sent."""
    calls = [text for call in message.tool_calls for text in (call.id, call.name, call.arguments)]
    return (message.content, message.tool_call_id, *calls)
