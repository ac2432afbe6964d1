"""The values of `format` that are checked. Others say something of a value and demand nothing."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from datetime import date

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S*")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?"
_TIME = re.compile(rf"{_CLOCK}([zZ]|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII)
_DURATION = re.compile(
    r"P(?!\Z)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?)", re.ASCII
)
_MAX_HOST = 253


def _is_date(text: str) -> bool:
    return _DATE.fullmatch(text) is not None and _is_taken(date.fromisoformat, text)


def _is_date_time(text: str) -> bool:
    day, time = text[:10], text[11:]
    return _is_date(day) and text[10:11] in ("T", "t", " ") and _TIME.fullmatch(time) is not None


def _is_host(text: str) -> bool:
    return len(text) <= _MAX_HOST and all(_HOST.fullmatch(part) for part in text.split("."))


def _is_taken(read: Callable[[str], object], text: str) -> bool:
    try:
        read(text)
    except ValueError:
        return False
    return True


FORMATS: Mapping[str, Callable[[str], bool]] = {
    "date": _is_date,
    "date-time": _is_date_time,
    "time": lambda text: _TIME.fullmatch(text) is not None,
    "duration": lambda text: _DURATION.fullmatch(text) is not None,
    "email": lambda text: _EMAIL.fullmatch(text) is not None,
    "hostname": _is_host,
    "ipv4": lambda text: _is_taken(ipaddress.IPv4Address, text),
    "ipv6": lambda text: "%" not in text and _is_taken(ipaddress.IPv6Address, text),
    "uri": lambda text: _URI.fullmatch(text) is not None,
    "uuid": lambda text: _UUID.fullmatch(text) is not None,
}
