"""A limit for records of calls that are refused at once, so that they cannot fill the disk.

They have no valid credential, or are beyond a quota: a caller can make thousands a second.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from ruvd.telemetry.audit.chain import Fields

_WINDOW_SECONDS = 60
_MAX_OF_A_KIND = 10
_MAX_RECORDS = 30
_MAX_KINDS = 100


class _Kind(NamedTuple):
    code: str
    reason: str
    detail: str
    tenant: str = ""
    identity: str = ""


_OTHER = _Kind("", "", "other kinds")


class RefusalLimit:
    """Passes on 10 refusals of a kind in a minute, and 30 of all kinds. It counts the others.

    Their number is recorded for each kind when the minute is over.
    """

    def __init__(self, add: Callable[[Fields], None]) -> None:
        self._add = add
        self._passed: Counter[_Kind] = Counter()
        self._counted: Counter[_Kind] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, fields: Fields) -> None:
        """Records a refusal or counts it. Called on the event loop."""
        kind = _Kind(*(str(fields.get(name, "")) for name in _Kind._fields))
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_WINDOW_SECONDS, self.end_window)
        if self._passed[kind] < _MAX_OF_A_KIND and self._passed.total() < _MAX_RECORDS:
            self._passed[kind] += 1
            self._add(fields)
        else:
            known = kind in self._counted or len(self._counted) < _MAX_KINDS
            self._counted[kind if known else _OTHER] += 1

    def end_window(self) -> None:
        """Records the numbers of refusals that had no record of their own, and begins again."""
        if self._timer:
            self._timer.cancel()
        self._timer = None
        counted, self._counted = self._counted, Counter()
        self._passed.clear()
        for kind, count in counted.items():
            named = {name: text for name, text in kind._asdict().items() if text}
            self._add({"event": "more_refusals", "count": count, **named})
