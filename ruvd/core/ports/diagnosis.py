"""The findings about how the settings of a store bear on the promises of the daemon."""

from ruvd.core.values import value


@value(frozen=True, slots=True)
class Finding:
    """A property of the store with its value, and its meaning for the promises.

    `is_risk` if a promise does not hold, or not as an operator would expect.
    """

    name: str
    value: str
    meaning: str
    is_risk: bool = False
