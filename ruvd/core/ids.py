"""Random ids that cannot be guessed.

The id of a completion names the replica that made it, if there are several:
`cmpl-REPLICA.RANDOM`, otherwise `cmpl-RANDOM`.
"""

import base64
import secrets

_BYTES = 18
# The number of ids made with the random bytes of one system call, which costs more than the rest.
_IDS_PER_CALL = 64
_COMPLETION = "cmpl-"
_END = "."  # not in the random text
_SHORT = 8

_random_bytes = bytearray()


def unguessable() -> str:
    """Returns 144 random bits as 24 characters of A-Z a-z 0-9 _ -."""
    if not _random_bytes:
        _random_bytes.extend(secrets.token_bytes(_BYTES * _IDS_PER_CALL))
    taken = bytes(_random_bytes[:_BYTES])
    del _random_bytes[:_BYTES]
    return base64.urlsafe_b64encode(taken).decode()


def of_completion(replica: str = "") -> str:
    """Returns the id of a new completion at a replica, which may be unnamed."""
    return (
        f"{_COMPLETION}{replica}{_END}{unguessable()}" if replica else _COMPLETION + unguessable()
    )


def replica_of(completion_id: str) -> str:
    """Returns the short id of the replica that made a completion, empty if it is not in its id."""
    name, end, _ = completion_id.removeprefix(_COMPLETION).partition(_END)
    return name if end and completion_id.startswith(_COMPLETION) else ""


def is_of_another(completion_id: str, replica: str) -> bool:
    """Whether another replica than this one made the completion."""
    return replica_of(completion_id) not in ("", replica)


def short(replica: str) -> str:
    """Returns the part of a replica's id that the ids of its completions have: 48 random bits."""
    return replica[:_SHORT]
