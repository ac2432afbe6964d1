"""The options of the last turn of sessions, which decide the prompt beside the messages.

A request for a summary has the same tools as the turn before it, so that the engine's cache hits.
They are not stored: after a restart, the first summary of a session may miss the cache.
"""

from collections import OrderedDict

from ruvd.core.options import CompletionOptions

# What is kept in all. Tools with large schemas may take most of it.
_MAX_BYTES = 8 << 20
_ENTRY_BYTES = 1000


class LastOptions:
    """The options of the sessions that had a turn lately."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        # By session, the longest unused first: the options, and their size.
        self._options: OrderedDict[str, tuple[CompletionOptions, int]] = OrderedDict()
        self._bytes = 0

    def get(self, session_id: str) -> CompletionOptions:
        """Returns the options of the session's last turn, or the default ones if unknown."""
        kept = self._options.get(session_id)
        return kept[0] if kept else CompletionOptions()

    def put(self, session_id: str, options: CompletionOptions) -> None:
        """Keeps the options of a turn."""
        self.drop(session_id)
        size = _size(options)
        self._options[session_id] = options, size
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._options.popitem(last=False)[1][1]

    def drop(self, session_id: str) -> None:
        """Forgets a session."""
        if kept := self._options.pop(session_id, None):
            self._bytes -= kept[1]


def _size(options: CompletionOptions) -> int:
    size = _ENTRY_BYTES + 16 * len(options.logit_bias)
    if options.tools:
        size += sum(len(tool.parameters) + len(tool.description) for tool in options.tools)
    if options.extra_body:
        size += len(str(options.extra_body))
    return size
