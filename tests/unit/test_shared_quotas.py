"""The quotas of tenants hold for the sum over all replicas, as of their last renewals."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from fakes import FrozenClock
from hypothesis import given
from hypothesis import strategies as st

from ruvd.core.completions.tenant_quotas import TenantQuotas
from ruvd.core.errors import QuotaExceeded
from ruvd.core.ports.tenant_usage import UsageByTenant
from ruvd.core.tenant_limits import UNLIMITED, TenantLimits


class Fleet:
    """The quotas of replicas in which the tenant ann has these limits, and others have none."""

    def __init__(self, count: int = 2, **limits: int) -> None:
        anns = TenantLimits(**limits)  # type: ignore[arg-type]
        self.limits_of = lambda tenant: anns if tenant == "ann" else UNLIMITED
        self.clock = FrozenClock()
        self.told: dict[str, UsageByTenant] = {}
        self.replicas = [self.another() for _ in range(count)]

    def another(self) -> TenantQuotas:
        quotas = TenantQuotas(self.limits_of, self.clock, 0.5)
        quotas.share()
        return quotas

    def renew(self, quotas: TenantQuotas) -> None:
        """Does what the renewal of a replica's lease does."""
        me = str(id(quotas))
        self.told[me] = quotas.usage()
        quotas.learn({name: usages for name, usages in self.told.items() if name != me})

    def renew_all(self) -> None:
        for _ in range(2):  # the first one learns from the last one, too
            for each in self.replicas:
                self.renew(each)

    def leave(self, quotas: TenantQuotas) -> None:
        """Ends the lease of a replica, as after a kill."""
        del self.told[str(id(quotas))]
        self.replicas.remove(quotas)


def use(quotas: TenantQuotas, tokens: int, tenant: str = "ann") -> None:
    quotas.begin(tenant, batch=False)
    quotas.end(tenant, batch=False, tokens=lambda: tokens)


def refused(quotas: TenantQuotas, **fields: bool) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as error:
        quotas.check("ann", **fields)
    return error.value


# --- tokens a minute ---------------------------------------------------------------------------


def test_tokens_of_another_replica_count_from_the_next_renewal_on() -> None:
    fleet = Fleet(tokens_per_minute=600)
    one, other = fleet.replicas
    fleet.renew_all()
    use(one, 500)
    use(other, 200)
    other.check("ann")
    fleet.renew_all()
    for each in fleet.replicas:
        error = refused(each)
        assert error.quota == "tokens_per_minute"
        assert error.retry_after_seconds == pytest.approx(10.1), "100 too many, and one more"
        each.check("bob")
    fleet.clock.advance(10.2)
    for each in fleet.replicas:
        each.check("ann")


def test_a_debt_is_made_up_for_at_one_rate_however_many_replicas_there_are() -> None:
    fleet = Fleet(3, tokens_per_minute=600)
    fleet.renew_all()
    use(fleet.replicas[0], 6000)
    for seconds in range(0, 540, 3):
        fleet.renew_all()
        for each in fleet.replicas:
            assert refused(each).retry_after_seconds == pytest.approx(540.1 - seconds)
        fleet.clock.advance(3)
    fleet.clock.advance(0.2)
    for each in fleet.replicas:
        each.check("ann")


def test_each_token_counts_once_however_often_leases_are_renewed() -> None:
    fleet = Fleet(3, tokens_per_minute=100)
    for _ in range(3):
        fleet.renew_all()
        for each in fleet.replicas:
            use(each, 11)
    for _ in range(9):
        fleet.renew_all()
    for each in fleet.replicas:
        each.check("ann")  # 99
    use(fleet.replicas[0], 1)
    fleet.renew_all()
    assert all(refused(each) for each in fleet.replicas)


def test_a_new_replica_learns_the_debts_and_one_that_was_cut_off_does_not_count_twice() -> None:
    fleet = Fleet(tokens_per_minute=600)
    one, other = fleet.replicas
    fleet.renew_all()
    use(one, 900)
    fleet.renew_all()
    new = fleet.another()
    fleet.renew(new)
    assert refused(new).retry_after_seconds == pytest.approx(30.1)
    other.forget_others()
    for _ in range(60):  # the others use what they may meanwhile
        fleet.clock.advance(10)
        use(one, 50)
        fleet.renew(one)
    fleet.renew(other)
    other.check("ann")
    assert other.usage()["ann"].owed == pytest.approx(50)


def test_a_replica_whose_lease_was_over_for_others_adds_no_more_than_is_owed() -> None:
    fleet = Fleet(tokens_per_minute=600)
    one, other = fleet.replicas
    for _ in range(60):
        use(one, 90)
        fleet.renew_all()
        fleet.clock.advance(10)
    other.learn({})
    use(one, 90)
    fleet.renew(one)
    fleet.renew(other)
    assert other.usage()["ann"].owed == pytest.approx(90)


def test_counts_that_have_not_grown_for_long_are_dropped_and_begin_again() -> None:
    fleet = Fleet(tokens_per_minute=600)
    one, other = fleet.replicas
    fleet.renew_all()
    use(one, 500)
    for _ in range(20):
        fleet.renew_all()
        fleet.clock.advance(10)
    assert not one.usage()
    assert not other.usage()
    use(one, 600)
    fleet.renew_all()
    assert refused(other).quota == "tokens_per_minute"


def test_tokens_that_were_used_at_once_at_two_replicas_are_made_up_for_one_after_the_other() -> (
    None
):
    fleet = Fleet(tokens_per_minute=60)
    fleet.renew_all()
    one, other = fleet.replicas
    use(one, 12)
    use(other, 52)
    fleet.clock.advance(3)
    fleet.renew_all()
    for each in fleet.replicas:
        assert refused(each).retry_after_seconds == pytest.approx(2)  # 61 of 60, and one more


@given(
    uses=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 40), st.integers(1, 400), st.booleans()),
        min_size=1,
        max_size=40,
    ),
    rate=st.sampled_from([1, 60, 1000]),
)
def test_over_any_time_what_a_replica_knows_of_is_within_one_rate_and_one_burst(
    uses: list[tuple[int, float, int, bool]], rate: int
) -> None:
    fleet = Fleet(3, tokens_per_minute=rate)
    fleet.renew_all()
    began = fleet.clock.time
    spent, known = [0, 0, 0], [[0, 0, 0] for _ in range(3)]
    published = [0, 0, 0]
    for number, seconds, tokens, renews in uses:
        fleet.clock.advance(seconds)
        quotas = fleet.replicas[number]
        if renews:
            fleet.renew(quotas)
            published[number] = spent[number]
            known[number] = [*published]
        try:
            quotas.check("ann")
        except QuotaExceeded:
            continue
        minutes = (fleet.clock.time - began) / 60
        others = sum(known[number]) - known[number][number]
        assert spent[number] + others <= rate * (minutes + 1) + 1e-6
        use(quotas, tokens)
        spent[number] += tokens


# --- completions that run or wait --------------------------------------------------------------


def test_completions_of_another_replica_count_until_it_tells_their_end() -> None:
    fleet = Fleet(max_inflight=3)
    one, other = fleet.replicas
    for _ in range(2):
        one.begin("ann", batch=False)
    fleet.renew_all()
    other.check("ann")
    other.begin("ann", batch=False)
    error = refused(other)
    assert (error.quota, error.retry_after_seconds) == ("max_inflight", 1.0)
    other.check("bob")
    one.check("ann")  # it has not learned of the third one yet
    fleet.renew_all()
    assert refused(one).quota == "max_inflight"
    one.end("ann", batch=False, tokens=lambda: 0)
    fleet.renew_all()
    other.check("ann")


def test_what_others_run_is_forgotten_with_their_lease_and_with_the_own_one() -> None:
    fleet = Fleet(max_inflight=1)
    one, other = fleet.replicas
    one.begin("ann", batch=False)
    fleet.renew_all()
    assert refused(other)
    other.forget_others()
    other.check("ann")
    fleet.renew(other)
    assert refused(other)
    fleet.leave(one)
    fleet.renew(other)
    other.check("ann")


async def test_an_item_of_a_batch_waits_for_completions_of_another_replica() -> None:
    fleet = Fleet(max_inflight=4)
    one, other = fleet.replicas
    for _ in range(2):
        one.begin("ann", batch=True)
    fleet.renew_all()
    other.check("ann")
    assert refused(other, batch=True).quota == "max_inflight"

    async def item() -> None:
        async with other.batch_room("ann", asyncio.sleep):
            other.begin("ann", batch=True)

    waiting = [asyncio.create_task(item()) for _ in range(2)]
    await asyncio.sleep(0)
    fleet.renew(other)
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    for _ in range(2):
        one.end("ann", batch=True, tokens=lambda: 0)
    fleet.renew_all()
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)
    assert other.usage()["ann"].batch_running == 2


# --- what is told ------------------------------------------------------------------------------


def test_only_tenants_with_a_limit_are_told_of_and_only_while_they_use_something() -> None:
    fleet = Fleet(max_inflight=3, tokens_per_minute=60)
    one = fleet.replicas[0]
    one.begin("bob", batch=False)
    assert not one.usage()
    use(one, 5, "bob")
    use(one, 5)
    one.begin("ann", batch=True)
    assert one.usage().keys() == {"ann"}
    usage = one.usage()["ann"]
    assert (usage.running, usage.batch_running, usage.tokens, usage.owed) == (1, 1, 5, 5)


def test_a_bounded_number_of_tenants_is_told_of() -> None:
    quotas = TenantQuotas(lambda _: TenantLimits(tokens_per_minute=1), FrozenClock(), 0.5)
    quotas.share()
    for number in range(3000):
        use(quotas, 5, f"t{number}")
    told = quotas.usage()
    assert len(told) == 2000
    assert told["t2999"].tokens == 5


def test_a_daemon_that_shares_no_store_tells_and_learns_nothing() -> None:
    quotas = TenantQuotas(lambda _: TenantLimits(max_inflight=1), FrozenClock(), 0.5)
    quotas.begin("ann", batch=False)
    others: Mapping[str, UsageByTenant] = {"other": quotas.usage()}
    quotas.learn(others)
    quotas.forget_others()
    assert not quotas.usage()
    quotas.check("bob")
