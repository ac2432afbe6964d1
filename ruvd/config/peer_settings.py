"""The settings by which replicas with one store call each other."""

import ipaddress
from functools import partial
from typing import Self

from pydantic import field_validator, model_validator
from pydantic_settings import BaseSettings

from ruvd.config.addresses import check_listen
from ruvd.config.fields import OptionalPath, setting

_peers = partial(setting, "Other replicas")


class PeerSettings(BaseSettings):
    """The part of `Settings` for calls from and to other replicas."""

    peer_listen: str = _peers(
        "",
        "Address, host:port, at which other replicas with the same postgresql store forward calls "
        "to this one. Unset: no call is forwarded.",
    )
    peer_address: str = _peers(
        "",
        "Address, host:port, at which other replicas reach this one. Unset: peer_listen, if that "
        "is not the address of all interfaces.",
    )
    peer_tls_cert_file: OptionalPath = _peers(
        None,
        "Certificate (PEM) of this replica, with its chain. It is shown to the replicas that call "
        "and that are called, and is read again when it changes.",
    )
    peer_tls_key_file: OptionalPath = _peers(
        None, "Unencrypted key (PEM) of the certificate in peer_tls_cert_file."
    )
    peer_tls_ca_file: OptionalPath = _peers(
        None,
        "CA certificates (PEM) for replicas. Whoever has a certificate that one of them has signed "
        "can call as any tenant, so it must sign for replicas only.",
    )
    peer_tls_name: str = _peers(
        "",
        "Host name that the certificates of all replicas have, also those of callers. Unset: the "
        "certificate of a replica has the host of its peer_address.",
    )

    peer_prefers_last_owner: bool = _peers(
        default=True,
        description="Forward a turn to the replica that had the session last, as long as it lives: "
        "its embedded engine has the session's KV state. For engine llama only.",
    )

    @field_validator("peer_listen", "peer_address")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        if value.startswith("unix:"):
            raise ValueError("must be host:port")
        if value:
            check_listen(value)
        return value

    @model_validator(mode="after")
    def _check_peers(self) -> Self:
        files = {
            "peer_tls_cert_file": self.peer_tls_cert_file,
            "peer_tls_key_file": self.peer_tls_key_file,
            "peer_tls_ca_file": self.peer_tls_ca_file,
        }
        if not self.peer_listen:
            given = [name for name, path in files.items() if path]
            given += [name for name in ("peer_address", "peer_tls_name") if getattr(self, name)]
            if given:
                raise ValueError(f"{', '.join(given)}: not used without peer_listen")
            return self
        if missing := [name for name, path in files.items() if not path]:
            raise ValueError(
                f"peer_listen needs {', '.join(missing)}: replicas know each other by certificates"
            )
        if not self.peer_address and _is_wildcard(self.peer_listen):
            raise ValueError(
                f"peer_listen {self.peer_listen} is no address that others can call: set "
                "peer_address"
            )
        return self


def _is_wildcard(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == "*"
