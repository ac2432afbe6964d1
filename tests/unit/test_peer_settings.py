"""Replicas call each other only with certificates on both sides, and where they can be reached."""

from __future__ import annotations

from typing import Any

import pytest

from ruvd.config.loader import SettingsInvalid, load

POSTGRES = "postgresql://ruvd@/ruvd"
FILES = {f"peer_tls_{name}_file": f"{name}.pem" for name in ("cert", "key", "ca")}


@pytest.mark.parametrize("missing", FILES)
def test_a_listener_for_replicas_needs_a_certificate_and_the_authority_of_its_callers(
    missing: str,
) -> None:
    given: dict[str, Any] = {"store": POSTGRES, "peer_listen": "127.0.0.1:1", **FILES}
    load(given)
    del given[missing]
    with pytest.raises(SettingsInvalid, match=missing):
        load(given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"peer_listen": "0.0.0.0:1", **FILES}, "peer_address"),
        ({"peer_listen": "[::]:1", **FILES}, "peer_address"),
        ({"peer_listen": "unix:/r.sock", **FILES}, "host:port"),
        ({"peer_address": "10.0.0.1:1"}, "peer_listen"),
        ({"peer_listen": "127.0.0.1:1", "store": "memory", **FILES}, "postgresql"),
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsInvalid, match=named):
        load({"store": POSTGRES, **given})


def test_an_address_of_all_interfaces_is_reached_at_another_one() -> None:
    given = {"peer_listen": "0.0.0.0:1", "peer_address": "10.0.0.1:1", **FILES}
    settings, _ = load({"store": POSTGRES, **given})
    assert settings.peer_address == "10.0.0.1:1"
