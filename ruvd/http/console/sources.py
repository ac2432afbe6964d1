"""The parts of the daemon that the pages show."""

from dataclasses import dataclass

from ruvd.core.completions.activity import Activity
from ruvd.core.ports.clock import Clock
from ruvd.core.ports.engine import Engine
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.sessions.turn_pages import TurnPages
from ruvd.core.tenant_statistics import TenantStatistics
from ruvd.rpc.admin.ports import Process


@dataclass(frozen=True, slots=True)
class Sources:
    """The parts that the pages read from, and that they do not change."""

    sessions: SessionRegistry
    turns: TurnPages
    activity: Activity
    statistics: TenantStatistics
    process: Process
    engine: Engine
    clock: Clock
