"""Random ids that cannot be guessed."""

import base64
import secrets

_BYTES = 18
# The number of ids made with the random bytes of one system call, which costs more than the rest.
_IDS_PER_CALL = 64

_random_bytes = bytearray()


def unguessable() -> str:
    """Returns 144 random bits as 24 characters of A-Z a-z 0-9 _ -."""
    if not _random_bytes:
        _random_bytes.extend(secrets.token_bytes(_BYTES * _IDS_PER_CALL))
    taken = bytes(_random_bytes[:_BYTES])
    del _random_bytes[:_BYTES]
    return base64.urlsafe_b64encode(taken).decode()
