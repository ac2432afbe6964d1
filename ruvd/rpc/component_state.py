"""The state of the store or the engine, for people who look at the daemon's health."""

from ruvd.core.values import value


@value(frozen=True, slots=True)
class ComponentState:
    """A state, its reason, and the time of the wall clock since when it holds, None if unknown."""

    up: bool = False
    detail: str = ""
    since: float | None = None

    def after(self, *, up: bool, detail: str, time: float) -> "ComponentState":
        """Returns the state after an event at this time, which may repeat the state."""
        is_same = self.since is not None and self.up is up
        return ComponentState(up, detail, self.since if is_same else time)
