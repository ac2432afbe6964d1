"""The usage of tenants survives its way through the text in a replica's row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvd.core.ports.tenant_usage import TenantUsage
from ruvd.stores.postgres.usage import decode, encode

_COUNTS = st.integers(0, 2**53)
_USAGES = st.builds(TenantUsage, _COUNTS, _COUNTS, _COUNTS, st.integers(0, 2**50).map(float))
# Names with the character NUL and lone surrogates, which PostgreSQL's texts cannot hold, too.
_NAMES = st.text(st.characters(exclude_categories=[]), max_size=9)


@given(st.dictionaries(_NAMES, _USAGES))
def test_every_usage_of_every_tenant_is_read_as_it_was_written(
    usages: dict[str, TenantUsage],
) -> None:
    text = encode(usages)
    assert text.isascii()
    assert "\0" not in text
    assert decode(text) == usages


def test_fields_that_a_newer_version_adds_are_ignored() -> None:
    assert decode('{"ann":[1,0,7,2.5,9]}') == {"ann": TenantUsage(1, 0, 7, 2.5)}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"a":3}', '{"a":{}}', '{"a":[1,0,"x",0]}', '{"a":[1]}', "null"]
)
def test_a_text_that_cannot_be_read_has_no_usage(text: str) -> None:
    assert decode(text) == {}
