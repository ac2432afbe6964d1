"""Settings: precedence, sources, and errors that name the setting and its source."""

from __future__ import annotations

import inspect
from pathlib import Path

import cyclopts
import pytest

from ruvd.cli.serve import serve
from ruvd.config.loader import Settings, SettingsInvalid, load, printable_values

PATH = Path | None


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_flag_goes_before_a_variable_before_the_file_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("ruvd.toml").write_text("max_sessions = 1\nllama_slots = 1\ndrain_seconds = 1\n")
    monkeypatch.setenv("RUVD_MAX_SESSIONS", "2")
    monkeypatch.setenv("RUVD_LLAMA_SLOTS", "2")
    settings, sources = load({"max_sessions": 3})
    assert (settings.max_sessions, sources["max_sessions"]) == (3, "--max-sessions")
    assert (settings.llama_slots, sources["llama_slots"]) == (2, "RUVD_LLAMA_SLOTS")
    assert (settings.drain_seconds, sources["drain_seconds"]) == (1.0, "ruvd.toml")
    assert (settings.max_exchanges, sources["max_exchanges"]) == (10, "default")


def test_a_variable_holds_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUVD_LISTEN", "unix:/run/r.sock, 127.0.0.1:1")
    settings, _ = load({})
    assert printable_values(settings)["listen"] == "unix:/run/r.sock, 127.0.0.1:1"


def test_a_value_with_a_comma_comes_from_a_flag_a_variable_and_the_file_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["--override-tensor", "a=b,c=d"]
    assert load({"llama_server_args": arguments})[0].llama_server_args == arguments
    assert _arguments_of_the_command_line(arguments) == arguments
    Path("ruvd.toml").write_text('llama_server_args = ["--override-tensor", "a=b,c=d"]\n')
    assert load({})[0].llama_server_args == arguments
    Path("ruvd.toml").unlink()
    monkeypatch.setenv("RUVD_LLAMA_SERVER_ARGS", '["--override-tensor", "a=b,c=d"]')
    assert load({})[0].llama_server_args == arguments
    text = printable_values(load({})[0])["llama_server_args"]
    monkeypatch.setenv("RUVD_LLAMA_SERVER_ARGS", text)
    assert load({})[0].llama_server_args == arguments, "`ruvd config` shows what the variable takes"


def _arguments_of_the_command_line(arguments: list[str]) -> object:
    app = cyclopts.App()
    app.default(serve)
    flags = [f"--llama-server-args={argument}" for argument in arguments]
    return app.parse_args(flags)[1].kwargs["llama_server_args"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("--flash-attn,on", ["--flash-attn", "on"]),
        (" -a , -b ", ["-a", "-b"]),
        ("", []),
        ("[]", []),
        (' ["a b", "c\\"d"] ', ["a b", 'c"d']),
    ],
)
def test_a_list_in_a_variable_has_commas_or_is_a_json_array(
    text: str, values: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUVD_LLAMA_SERVER_ARGS", text)
    assert load({})[0].llama_server_args == values


def test_every_list_takes_a_json_array_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUVD_LISTEN", '["unix:/run/a,b.sock", "[::1]:1"]')
    monkeypatch.setenv("RUVD_BASE_URL", '["http://first", "http://second"]')
    settings, _ = load({})
    assert settings.listen == ["unix:/run/a,b.sock", "[::1]:1"]
    assert settings.base_url == ["http://first/v1", "http://second/v1"]
    monkeypatch.setenv("RUVD_LISTEN", "[::1]:1")
    assert load({})[0].listen == ["[::1]:1"], "an IPv6 address is no JSON"


def test_a_json_array_that_is_broken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUVD_LLAMA_SERVER_ARGS", '["-a", "b')
    with pytest.raises(SettingsInvalid, match=r"llama_server_args .*JSON"):
        load({})


def test_evaluate_ahead_is_for_the_embedded_engine_unless_it_is_set() -> None:
    evaluates = {
        (value, engine): load({"evaluate_ahead": value, "engine": engine})[0].evaluates_ahead
        for value in ("auto", "on", "off")
        for engine in ("llama", "echo")
    }
    assert {case for case, yes in evaluates.items() if yes} == {
        ("auto", "llama"),
        ("on", "llama"),
        ("on", "echo"),
    }


def test_all_errors_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("ruvd.toml").write_text("max_session = 5\n")
    monkeypatch.setenv("RUVD_DRAIN_SECNDS", "1")
    monkeypatch.setenv("RUVD_LLAMA_SLOTS", "many")
    with pytest.raises(SettingsInvalid) as caught:
        load({"drain_seconds": -1.0})
    text = str(caught.value)
    assert "did you mean max_sessions?" in text
    assert "RUVD_DRAIN_SECNDS is not a setting; did you mean drain_seconds?" in text
    assert "llama_slots (from RUVD_LLAMA_SLOTS)" in text
    assert "drain_seconds (from --drain-seconds)" in text


def test_a_secret_comes_from_a_variable_or_the_file_and_is_never_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert printable_values(load({})[0])["api_key"] == ""
    Path("ruvd.toml").write_text('cache_salt = "pepper"\n')
    monkeypatch.setenv("RUVD_API_KEY", "sk-1234")
    settings, sources = load({})
    assert settings.api_key.get_secret_value() == "sk-1234"
    printed = printable_values(settings)
    assert printed["api_key"] == printed["cache_salt"] == "(hidden)"
    assert (sources["api_key"], sources["cache_salt"]) == ("RUVD_API_KEY", "ruvd.toml")
    assert "sk-1234" not in repr(settings) + str(settings)
    assert "pepper" not in repr(settings) + str(settings)


def test_a_secret_has_no_flag() -> None:
    flags = inspect.signature(serve).parameters
    assert "api_key_file" in flags
    assert not {"api_key", "cache_salt"} & set(flags)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("https://api.example.org/", "https://api.example.org/v1"),
        ("https://api.example.org/v1/", "https://api.example.org/v1"),
        ("https://example.org/openai/v1", "https://example.org/openai/v1"),
        ("https://example.org/v1/?api-version=1", "https://example.org/v1?api-version=1"),
        ("https://example.org?api-version=1", "https://example.org/v1?api-version=1"),
    ],
)
def test_a_server_without_a_path_gets_v1(
    given: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load({"base_url": [given]})[0].base_url == [used]
    monkeypatch.setenv("RUVD_BASE_URL", f"{given}, http://second")
    assert load({})[0].base_url == [used, "http://second/v1"]


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsInvalid, match="api_key") as refused:
        load({"base_url": ["https://ann:s3cret@example.org:x"]})
    assert "s3cret" not in str(refused.value)


def test_variables_of_a_kubernetes_service_named_ruvd_are_not_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUVD_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("RUVD_SERVICE_PORT_GRPC", "50051")
    monkeypatch.setenv("RUVD_PORT", "tcp://10.0.0.1:50051")
    monkeypatch.setenv("RUVD_PORT_50051_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("RUVD_ADDRESS", "unix:/run/r.sock")
    monkeypatch.setenv("RUVD_CHAT_SERVICE_HOST", "10.0.0.2")  # and one named ruvd-chat
    monkeypatch.setenv("RUVD_CHAT_PORT", "tcp://10.0.0.2:50051")
    load({})


REMOTE = ["0.0.0.0:1", "[::]:1", "example.org:1", "10.1.2.3:1"]
TLS: dict[str, object] = {"tls_cert_file": Path("c"), "tls_key_file": Path("k")}
JWT: dict[str, object] = {
    "jwt_issuer": "i",
    "jwt_audience": "a",
    "jwt_jwks_url": "https://example.org/keys",
}


@pytest.mark.parametrize("address", REMOTE)
def test_an_address_that_is_not_loopback_needs_tls_and_identity_or_permission(address: str) -> None:
    refused: list[dict[str, object]] = [
        {},
        TLS,
        {"tokens_file": Path("t")},
        {**TLS, "client_ca_file": Path("ca"), "client_identities": []},
    ]
    for flags in refused:
        with pytest.raises(SettingsInvalid, match="not loopback"):
            load({"listen": [address], **flags})
    load({"listen": [address], "allow_remote_insecure": True})
    identities: list[dict[str, object]] = [
        {"client_ca_file": Path("ca")},
        {"tokens_file": Path("t")},
        JWT,
    ]
    for identity in identities:
        load({"listen": [address], **TLS, **identity})


def test_metrics_stay_on_loopback_although_callers_have_identities() -> None:
    flags = {"metrics_listen": "0.0.0.0:1", **TLS, "tokens_file": Path("t")}
    with pytest.raises(SettingsInvalid, match=r"metrics_listen: .* is not loopback"):
        load(flags)
    load({**flags, "allow_remote_insecure": True})


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"tls_cert_file": Path("c")}, "tls_cert_file and tls_key_file need each other"),
        ({"client_ca_file": Path("c")}, "client_ca_file needs tls_cert_file"),
        ({"jwt_issuer": "i"}, "jwt_issuer needs jwt_audience"),
        ({"jwt_issuer": "i", "jwt_audience": "a"}, "jwt_issuer needs jwt_jwks_file or"),
        ({"jwt_jwks_file": Path("k")}, "jwt_issuer needs jwt_jwks_file or"),
        ({**JWT, "jwt_jwks_file": Path("k")}, "exclude each other"),
        ({**JWT, "jwt_issuer": "token-file"}, "token-file needs jwt_jwks_token_file"),
        ({"jwt_jwks_url": "http://example.org/keys"}, "must be like https://"),
        ({"jwt_jwks_url": "https://a:b@example.org/keys"}, "without credentials"),
        ({"jwt_algorithms": ["none"]}, "jwt_algorithms .* must be some of"),
        ({"jwt_algorithms": ["HS256"]}, "jwt_algorithms .* must be some of"),
        ({"jwt_algorithms": []}, "jwt_algorithms .* must be some of"),
        ({"client_identities": ["a;tenat=b"]}, "must be tenant=NAME or role=ROLE"),
        ({"client_identities": ["a;role=root"]}, "must be one of user, reader, admin"),
        ({"client_identities": [";tenant=b"]}, "the text before the first semicolon"),
        ({"jwt_identities": ["a;tenant=b c"]}, "printable ASCII"),
        ({"listen": ["unix:/s;tenant="]}, "printable ASCII"),
        ({"listen": ["unix:/s;role=user"]}, "needs a tenant"),
        ({"listen": ["127.0.0.1:1;tenant=a"]}, "only unix:PATH"),
        ({"listen": ["unix:;tenant=a"]}, "the path after unix: is missing"),
    ],
)
def test_settings_of_security_that_are_wrong_are_refused(
    flags: dict[str, object], why: str
) -> None:
    with pytest.raises(SettingsInvalid, match=why):
        load(flags)


def test_a_socket_may_have_a_tenant_and_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUVD_LISTEN", "unix:/a;tenant=x;role=admin, unix:/b;tenant=y, [::1]:1")
    settings, _ = load({})
    assert settings.listeners == [
        ("unix:/a", "x", "admin"),
        ("unix:/b", "y", "user"),
        ("[::1]:1", "", "user"),
    ]
    assert settings.has_identity
    assert not load({"listen": ["unix:/a"]})[0].has_identity


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:1", "localhost:1", "unix:r.sock"])
def test_loopback_needs_no_permission(address: str) -> None:
    load({"listen": [address]})


@pytest.mark.parametrize(
    "flags",
    [
        {"listen": ["50051"]},
        {"listen": ["unix:"]},
        {"listen": ["unix:/run/%6F.sock"]},  # gRPC would decode the path
        {"idle_timeout_seconds": float("inf")},
        {"idle_timeout_seconds": 1e12},
        {"max_request_bytes": 1_000_000_000},
        {"listen": []},
        {"listen": ["localhost:99999"]},
        {"store": "redis"},
        {"keep_exchanges": 11},
        {"llama_answer_tokens": 4096},
        {"engine": "openai"},
        {"engine": "openai", "model": "m"},
        {"engine": "openai", "base_url": ["http://h"]},
        {"base_url": ["h:8000"]},
        {"base_url": ["ftp://h"]},
        {"base_url": ["http://"]},
        {"base_url": ["http://h:99999"]},
        {"base_url": ["http://h/v1#part"]},
        {"affinity": "sticky"},
        {"affinity_header": "X Session"},
        {"client_key_file": Path("k")},
        {"read_seconds": 0},
        {"retries": -1},
    ],
)
def test_settings_that_cannot_work_are_refused(flags: dict[str, object]) -> None:
    with pytest.raises(SettingsInvalid):
        load(flags)


def test_a_settings_file_that_is_named_must_exist_and_parse() -> None:
    with pytest.raises(SettingsInvalid, match=r"settings file elsewhere\.toml does not exist"):
        load({}, file=Path("elsewhere.toml"))
    Path("bad.toml").write_text("listen = [")
    with pytest.raises(SettingsInvalid, match=r"bad\.toml"):
        load({}, file=Path("bad.toml"))


@pytest.mark.parametrize(
    ("store", "path"), [("memory", None), ("sqlite:/x/y.db", "/x/y.db"), ("sqlite:r.db", "r.db")]
)
def test_the_store_names_its_file(store: str, path: str | None) -> None:
    settings, _ = load({"store": store})
    assert settings.sqlite_path == (Path(path) if path else None)


def test_every_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"RUVD_{name.upper()}", "")
    for name in ("RUVD_CONFIG", "RUVD_ADDRESS", "RUVD_DRAIN_SECNDS"):
        monkeypatch.setenv(name, "")
    settings, sources = load({})
    assert set(sources.values()) == {"default"}
    assert settings == Settings()


def test_an_empty_variable_leaves_the_value_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("ruvd.toml").write_text('drain_seconds = 1\nkv_cache_dir = "kv"\n')
    monkeypatch.setenv("RUVD_DRAIN_SECONDS", "")
    monkeypatch.setenv("RUVD_KV_CACHE_DIR", "")
    settings, sources = load({})
    assert (settings.drain_seconds, settings.kv_cache_dir) == (1.0, Path("kv"))
    assert sources["drain_seconds"] == "ruvd.toml"


def test_an_empty_path_is_none_and_not_the_working_directory() -> None:
    paths = [name for name, field in Settings.model_fields.items() if field.annotation == PATH]
    assert "kv_cache_dir" in paths
    Path("ruvd.toml").write_text("".join(f'{name} = ""\n' for name in paths))
    settings, _ = load({})
    assert {getattr(settings, name) for name in paths} == {None}


def test_an_empty_list_is_given_by_a_variable_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUVD_CLIENT_IDENTITIES", "[]")
    assert load({})[0].client_identities == []
