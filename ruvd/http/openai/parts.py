"""The parts of the daemon that the operations of the API call."""

from dataclasses import dataclass

from ruvd.core.completions.batch import Batches
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.ports.engine import Engine
from ruvd.core.ports.memory import Memory
from ruvd.core.sessions.commands import SessionCommands
from ruvd.core.sessions.model import SessionPolicy
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.rpc.validation import RequestLimits


@dataclass(frozen=True, slots=True)
class Parts:
    """The core, and the limits of requests."""

    sessions: SessionRegistry
    commands: SessionCommands
    completions: CompletionRegistry
    batches: Batches
    engine: Engine
    limits: RequestLimits
    policy: SessionPolicy
    memory: Memory
