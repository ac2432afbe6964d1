"""A refusal beside its words: when to come back, and where requests must go."""

from __future__ import annotations

import email.utils
import re
from typing import Any

from quirk import Quirk, check, reply, say, stream, table
from upstream import Upstream

from ruvd.core.errors import EngineRateLimited, EngineRejected, EngineUnavailable

ONCE = {"retries": 0}
DAY = 86_400.0


def busy(name: str, value: str, retry_after: float, date: str = "", **settings: Any) -> Quirk:
    """A row for a rate limit with this Retry-After."""
    response = reply({"error": "slow down"}, "429 Busy", **{"Retry-After": value, "Date": date})
    return Quirk(
        name,
        response,
        error=EngineRateLimited,
        words="slow down",
        retry_after=retry_after,
        settings={**ONCE, **settings},
    )


def http_date(seconds: float) -> str:
    return email.utils.formatdate(seconds, usegmt=True)


@table(
    busy("Retry-After: seconds", "7", 7.0),
    busy("Retry-After: fractions", "0.5", 0.5),
    busy("Retry-After: with a unit", "20s", 20.0),
    busy("Retry-After: nothing", "", 1.0),
    busy("Retry-After: a word", "soon", 1.0),
    busy("Retry-After: negative", "-5", 1.0),
    busy("Retry-After: NaN", "NaN", 1.0),
    busy("Retry-After: infinite", "inf", 1.0),
    busy("Retry-After: an exponent", "1e400", 1.0),
    busy("Retry-After: a day", "86400", 3600.0),
    busy("Retry-After: a day, and a setting of two", "86400", DAY, max_retry_after_seconds=2 * DAY),
    busy("Retry-After: beyond 2^63", str(2**63), 3600.0),
    busy("Retry-After: 300 digits", "9" * 300, 3600.0),
    busy("Retry-After: 400 digits", "9" * 400, 1.0),
    busy("Retry-After: digits that are not ASCII", "\u0667", 1.0),
    busy("Retry-After: twice in one line", "5, 5", 5.0),
    busy("Retry-After: a date", http_date(1e9 + 30), 30.0, http_date(1e9)),
    busy("Retry-After: a date that is past", http_date(1e9 - 30), 0.0, http_date(1e9)),
    busy("Retry-After: a date in the far future", "Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
    busy("Retry-After: a date beyond all years", "Fri, 31 Dec 99999 23:59:59 GMT", 1.0),
    busy("Retry-After: no date", "Fri, 99 Foo 2020 99:99:99 GMT", 1.0),
    Quirk("Retry-After: twice", [b"HTTP/1.1 429 Busy\r\nRetry-After: 5\r\nRetry-After: 99999999999999999999\r\nContent-Length: 0\r\n\r\n"], error=EngineRateLimited, settings=ONCE),
    Quirk("Retry-After: 0, and then it works", reply(b"", "503 Busy", **{"Retry-After": "0"}), retried=True),
    Quirk("Retry-After: absurd, and no wait for it", reply(b"", "503 Busy", **{"Retry-After": "1" * 30}), error=EngineUnavailable, retry_after=3600.0),
    Quirk("Retry-After: longer than the whole call", reply(b"", "503 Busy", **{"Retry-After": "50"}), error=EngineUnavailable, retry_after=50.0, settings={"total_seconds": 40.0}),
)  # fmt: skip
async def test_a_delay_is_within_reason(quirk: Quirk) -> None:
    await check(quirk)


def asked(path: str) -> Any:
    """Whether every request, also that for the models, had the query."""

    def check_paths(server: Upstream) -> bool:
        wanted = re.compile(path)
        return all(wanted.fullmatch(each.path) for each in [*server.requests, *server.lookups])

    return check_paths


HI = stream(say("Hi", "stop"))
VERSION = r"/v1/(chat/completions|models)\?api-version=2024-10-21"


@table(
    Quirk("Azure: a query in base_url", HI, text="Hi", path="?api-version=2024-10-21", sends=asked(VERSION)),
    Quirk("Azure: a query, and health checks", HI, text="Hi", path="?api-version=2024-10-21", models=reply({"data": []}), sends=asked(VERSION)),
    Quirk("Azure: a path and a query", HI, text="Hi", path="/openai/v1?api-version=preview&x=a%20b", sends=asked(r"/v1/openai/v1/chat/completions\?api-version=preview&x=a%20b")),
    Quirk("Azure: a query, and a retry", reply(b"", "503 Busy"), path="?api-version=2024-10-21", retried=True, sends=asked(VERSION)),
    Quirk("Azure: no such version", reply({"error": {"code": "404", "message": "Resource not found"}}, "404 Not Found"), path="?api-version=1", error=EngineRejected, words="Resource not found"),
)  # fmt: skip
async def test_a_query_of_the_base_url_is_sent_with_every_request(quirk: Quirk) -> None:
    await check(quirk)
