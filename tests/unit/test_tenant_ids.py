"""Ids with their tenant in them, and the caches that are a tenant's own."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from ruvd.core import tenants
from ruvd.core.completions import shared_prefixes
from ruvd.core.completions.completion import CompletionRequest
from ruvd.core.model import Message, Role, Timings, Usage
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineRequest
from ruvd.core.ports.events import CompletionEnded
from ruvd.core.statistics import Statistics
from ruvd.core.tenant_statistics import TenantStatistics
from ruvd.engines.llama.prompt import prompt_of
from ruvd.engines.openai.affinity import Affinity

TENANTS = st.one_of(
    st.just(tenants.DEFAULT),
    st.text(st.sampled_from("a/b"), min_size=1, max_size=4),
    st.from_regex(r"[\x21-\x7e]{1,20}", fullmatch=True),
)
IDS = st.from_regex(r"[A-Za-z0-9._:-]{1,8}", fullmatch=True)
TEXTS = st.text(max_size=8)
# What a caller may write into a field for an id, whether that is an id or not.
ANY_ID = st.one_of(IDS, TEXTS, st.text(st.sampled_from("a/b\n"), max_size=8))


@given(TENANTS, IDS)
def test_an_id_tells_its_tenant_and_the_tenants_own_id(tenant: str, own: str) -> None:
    scoped = tenants.scoped(tenant, own)
    assert tenants.tenant_of(scoped) == tenant
    assert tenants.own(scoped) == own
    assert scoped.startswith(tenants.prefix(tenant))


@example("/a", "b", "c", "a/c")
@example("a", "default", "b", "a/b")
@example("a/b", "a", "c", "b/c")
@example("a", "default", "b", "a\nb")
@given(TENANTS, TENANTS, IDS, ANY_ID)
def test_no_text_of_one_tenant_names_what_belongs_to_another(
    one: str, other: str, own: str, text: str
) -> None:
    if one != other:
        assert tenants.scoped(one, own) != tenants.scoped(other, text)
        assert not text or tenants.scoped_request(one, own) != tenants.scoped_request(other, text)


@given(TENANTS)
def test_an_empty_id_stays_empty(tenant: str) -> None:
    assert tenants.scoped(tenant, "") == tenants.scoped_request(tenant, "") == ""


def request(tenant: str, text: str = "a long document " * 100) -> CompletionRequest:
    return CompletionRequest([Message(Role.USER, text)], tenant=tenant)


def test_requests_of_two_tenants_share_no_evaluated_beginning() -> None:
    texts = {
        number: shared_prefixes.beginning(request(tenant))
        for number, tenant in enumerate(("a", "a", "b", "b"))
    }
    keys = shared_prefixes.group(texts)
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_prompts_of_two_tenants_have_nothing_in_common() -> None:
    one, two = (
        prompt_of(EngineRequest([Message(Role.USER, "hello")], tenant=tenant))
        for tenant in ("a", "b")
    )
    assert (one.common(one), one.common(two)) == (5, 0)
    assert one.with_answer("x").common(one) == 5


def test_each_tenant_has_a_cache_salt_of_its_own() -> None:
    affinity = Affinity("vllm", cache_salt="deployment")
    other = Affinity("vllm", cache_salt="another deployment")

    def salt(affinity: Affinity, tenant: str) -> str:
        return affinity.fields(EngineRequest([], CompletionOptions(), tenant=tenant))["cache_salt"]

    assert salt(affinity, tenants.DEFAULT) == "deployment"
    assert salt(affinity, "a") == salt(affinity, "a")
    different = {salt(affinity, "a"), salt(affinity, "b"), salt(other, "a"), "deployment"}
    assert len(different) == 4
    assert salt(Affinity("sglang"), "a")
    assert not Affinity("openai").fields(EngineRequest([], tenant="a"))


def ended(tenant: str) -> CompletionEnded:
    completion = tenants.scoped(tenant, "cmpl-1")
    usage = Usage(10, 5, 1)
    return CompletionEnded(
        completion_id=completion,
        session_id="",
        batch=False,
        model="m",
        reason="STOP",
        failed=False,
        usage=usage,
        timings=Timings(0.0, None, 1.0, None),
        context_messages=1,
        context_trimmed=False,
    )


def test_the_sums_of_tenants_are_separate_and_bounded() -> None:
    by_tenant = TenantStatistics(Statistics())
    for number in range(1500):
        by_tenant(ended(f"t{number}"))
    by_tenant(ended("t1499"))
    assert by_tenant.of("t1499").stateless.count == 2
    assert by_tenant.of("t1000").stateless.count == 1
    assert by_tenant.of("t0").stateless.count == 0
    assert by_tenant.of("unknown").stateless.count == 0
