"""The level of our log lines while the daemon runs: the setting's, or another one for a while."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

_log = logging.getLogger("ruvd")


class LogLevelControl:
    """Changes the lowest level that is logged, and logs each change at any level.

    `current` is the level now, by its name in the settings, and `expires` the time at which it
    returns to the setting. It needs a running event loop.
    """

    def __init__(self, configured: str) -> None:
        self._configured = self.current = configured
        self._timer: asyncio.TimerHandle | None = None
        self.expires: datetime | None = None

    def set(self, level: str | None, seconds: float | None = None) -> None:
        """Changes the level, for so many seconds or until the end. None: that of the setting."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.expires = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.set, None)
            self.expires = datetime.now(UTC) + timedelta(seconds=seconds)
        self.current = level = level or self._configured
        number = logging.getLevelNamesMapping()[level.upper()]
        _log.setLevel(min(number, logging.INFO))
        extra = {"log_level": level} | ({} if seconds is None else {"seconds": seconds})
        _log.info("log level", extra=extra)
        _log.setLevel(number)

    def toggle_debug(self) -> None:
        """Switches between debug and the level of the setting."""
        self.set(None if self.current == "debug" else "debug")
