"""The circuit breaker: it opens after failures in a row, and lets one probe through at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes import FrozenClock

from ruvd.engines.openai.circuit_breaker import CircuitBreaker, Permit

OPEN_SECONDS = 10.0
PROBE_SECONDS = 600.0


class Circuit:
    """A breaker that opens after two failures, and its clock."""

    def __init__(self) -> None:
        self.clock = FrozenClock()
        self.breaker = CircuitBreaker(
            failures=2,
            open_seconds=OPEN_SECONDS,
            probe_seconds=PROBE_SECONDS,
            monotonic=self.clock.monotonic,
        )

    def acquire(self) -> Permit:
        permit = self.breaker.try_acquire()
        assert permit is not None
        return permit

    def fail(self) -> None:
        self.breaker.record(self.acquire(), failed=True)

    def half_open(self) -> None:
        self.fail()
        self.fail()
        self.clock.advance(OPEN_SECONDS)

    @property
    def is_closed(self) -> bool:
        return self.breaker.try_acquire() is not None and self.breaker.try_acquire() is not None


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    circuit = Circuit()
    for failed in (True, False, True, None):
        circuit.breaker.record(circuit.acquire(), failed=failed)
    assert circuit.is_closed
    circuit.fail()
    assert circuit.breaker.try_acquire() is None
    assert circuit.breaker.wait_seconds == OPEN_SECONDS
    circuit.clock.advance(OPEN_SECONDS - 1.0)
    assert circuit.breaker.try_acquire() is None
    assert circuit.breaker.wait_seconds == 1.0


def test_half_open_it_lets_one_probe_through_whose_result_decides() -> None:
    for failed in (False, True):
        circuit = Circuit()
        circuit.half_open()
        assert circuit.breaker.wait_seconds == 0.0
        probe = circuit.acquire()
        assert circuit.breaker.is_probe(probe)
        assert circuit.breaker.try_acquire() is None
        assert circuit.breaker.wait_seconds > 0.0
        circuit.breaker.record(probe, failed=failed)
        assert circuit.is_closed is not failed


def test_a_probe_that_was_cancelled_leaves_the_next_call_to_probe() -> None:
    circuit = Circuit()
    circuit.half_open()
    for _ in range(3):
        probe = circuit.acquire()
        assert circuit.breaker.try_acquire() is None
        circuit.breaker.record(probe, failed=None)
    circuit.breaker.record(circuit.acquire(), failed=False)
    assert circuit.is_closed


def test_a_probe_that_never_comes_back_is_replaced_by_one_other() -> None:
    circuit = Circuit()
    circuit.half_open()
    lost = circuit.acquire()
    circuit.clock.advance(PROBE_SECONDS - 1.0)
    assert circuit.breaker.try_acquire() is None
    circuit.clock.advance(1.0)
    probe = circuit.acquire()
    assert circuit.breaker.try_acquire() is None
    # If the lost one comes back after all, the circuit still waits for the other.
    circuit.breaker.record(lost, failed=None)
    assert circuit.breaker.try_acquire() is None
    assert circuit.breaker.is_probe(probe)
    circuit.breaker.record(probe, failed=False)
    assert circuit.is_closed


@pytest.mark.parametrize(
    "end",
    [
        lambda circuit, before: circuit.breaker.record(before, failed=False),
        lambda circuit, _: circuit.breaker.reset(),
    ],
    ids=["an earlier call that ends well", "a health check"],
)
def test_what_closes_it_beside_a_probe_makes_that_an_ordinary_call(
    end: Callable[[Circuit, Permit], None],
) -> None:
    circuit = Circuit()
    before = circuit.acquire()
    circuit.half_open()
    probe = circuit.acquire()
    end(circuit, before)
    assert circuit.is_closed
    circuit.breaker.record(probe, failed=True)
    assert circuit.is_closed  # one failure is not two
    circuit.fail()
    circuit.clock.advance(OPEN_SECONDS)
    assert circuit.breaker.try_acquire() is not None
    assert circuit.breaker.try_acquire() is None
