"""Checks of the addresses and URLs in settings. Pure functions."""

import ipaddress
from urllib.parse import urlsplit


def check_listen(address: str) -> None:
    """Raises ValueError if the address is neither host:port nor unix:PATH."""
    host, _, port = address.rpartition(":")
    if address.startswith("unix:"):
        if not address.removeprefix("unix:"):
            raise ValueError(f"{address!r}: the path after unix: is missing")
        if "%" in address:  # gRPC would decode it, and bind another path
            raise ValueError(f"{address!r}: the path must not contain %")
    elif not host or not port.isdigit() or int(port) > 65535:  # the highest port
        raise ValueError(f"{address!r} is neither host:port nor unix:PATH")


def server_url(url: str) -> str:
    """Returns a server's URL without a final slash, with /v1 for no path. Raises ValueError.

    A query stays, as Azure's clients take it: `https://HOST/openai/v1?api-version=preview`.
    """
    if "@" in url:
        raise ValueError("a URL must not contain credentials; use api_key or api_key_file")
    try:
        parsed = urlsplit(url)
        known = parsed.scheme in ("http", "https") and parsed.hostname and parsed.port != 0
    except ValueError as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from None
    if not known or parsed.fragment:
        raise ValueError(f"{url!r} must be like https://HOST:PORT/v1")
    query = f"?{parsed.query}" if parsed.query else ""
    return f"{parsed.scheme}://{parsed.netloc}{parsed.path.rstrip('/') or '/v1'}{query}"


def check_secure_url(url: str) -> None:
    """Raises ValueError unless the URL is https, or http to this machine."""
    try:
        parsed = urlsplit(url)
        host, known = parsed.hostname or "", parsed.port != 0
    except ValueError as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from None
    secure = parsed.scheme == "https" or (parsed.scheme == "http" and is_loopback(f"{host}:0"))
    if not (secure and host and known) or "@" in parsed.netloc:
        raise ValueError(f"{url!r} must be like https://HOST/PATH, without credentials")


def is_loopback(address: str) -> bool:
    """Tells whether only this machine can reach the address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
