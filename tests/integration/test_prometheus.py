"""The dashboard and the alert rules, against a real Prometheus that scrapes a real daemon.

Debian's package `prometheus` has both programs; without them these tests are skipped. Every query
has to return data, alerts with their comparisons as values.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from answers import Answer, refusal, text
from running import RunningDaemon, StartDaemon
from ruvd_client import AsyncClient, RuvdError
from upstream import Request, serving

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "ruvd.json").read_text())
PANELS: list[dict[str, Any]] = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
SECONDS = 60.0

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")),
    reason="needs Debian's package prometheus",
)


def promtool(*arguments: str, given: str | None = None) -> None:
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=ALERTS.parent, input=given, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr


def test_the_dashboard_says_of_every_panel_what_it_shows_and_what_to_do() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    titles = [panel["title"] for panel in PANELS]
    assert len(titles) == len(set(titles))
    for panel in PANELS:
        assert panel["title"]
        assert len(panel["description"]) > 40, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert 'instance=~"$instance"' in target["expr"], panel["title"]


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@needs_prometheus
def test_the_alert_rules_are_valid_and_fire_when_they_should() -> None:
    promtool("check", "rules", ALERTS.name)
    promtool("test", "rules", "alerts_test.yaml")


@needs_prometheus
def test_every_alert_has_a_unit_test_and_words_for_whoever_is_woken() -> None:
    rules = ALERTS.read_text()
    names = re.findall(r"- alert: (\w+)", rules)
    tests = (ALERTS.parent / "alerts_test.yaml").read_text()
    explained = (DEPLOY / "README.md").read_text()
    assert names
    for name in names:
        assert f'alertname="{name}"' in tests
        assert name in explained
    for word in ("summary", "description", "runbook", "severity"):
        assert len(re.findall(rf"^ +{word}: ", rules, re.MULTILINE)) == len(names)


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[str]:
    """A Prometheus that scrapes the target five times a second; its URL."""
    config = {
        "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "ruvd", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    process = await asyncio.create_subprocess_exec(
        "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
        "--web.listen-address=127.0.0.1:0",
        cwd=folder, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    lines: list[str] = []

    async def listening(stderr: asyncio.StreamReader) -> str:
        # It listens before it is ready, and refuses queries until then.
        async for line in stderr:
            lines.append(line.decode())
            found = re.search(r'msg="Listening on" address=(\S+)', "".join(lines))
            if found and "Server is ready" in "".join(lines):
                return found[1]
        raise AssertionError(lines)

    try:
        address = await asyncio.wait_for(listening(process.stderr), SECONDS)
        rest = asyncio.create_task(process.stderr.read())
        yield f"http://{address}/api/v1"
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), SECONDS)
    await rest


async def read(url: str, **parameters: str) -> str:
    if parameters:
        url = f"{url}?{urllib.parse.urlencode(parameters)}"

    def get() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # a URL of ours
            body: bytes = answer.read()
            return body.decode()

    return await asyncio.to_thread(get)


async def has_data(api: str, query: str) -> bool:
    answer = json.loads(await read(f"{api}/query", query=query))
    return any(not math.isnan(float(each["value"][1])) for each in answer["data"]["result"])


def answer(request: Request) -> Answer:
    """As llama-server does it, which reports its prefill time; or a refusal if asked for one."""
    refusals = {"over the quota": "429 Too Many Requests", "broken": "500 Internal Server Error"}
    if status := refusals.get(request.last):
        return refusal(status, "no")
    return text("Hello", " there", "!", shape="llama-server")


async def load(daemon: RunningDaemon) -> None:
    """Turns, stateless calls, a session that ends and calls that fail, on and on."""
    async with AsyncClient(daemon.socket) as client:
        number = 0
        while True:
            number += 1
            for session_id in ("one", f"other{number}", ""):
                await client.complete(f"word {number}", session_id=session_id).text()
            await client.end_session(f"other{number}")
            for said in ("over the quota", "broken"):
                with pytest.raises(RuvdError):
                    await client.complete(said).text()


def dashboard_queries() -> set[str]:
    return {
        target["expr"]
        .replace("$__rate_interval", "10s")
        .replace("$job", ".*")
        .replace("$instance", ".*")
        for panel in PANELS
        for target in panel["targets"]
    }


async def rule_queries(api: str) -> set[str]:
    groups = json.loads(await read(f"{api}/rules"))["data"]["groups"]
    assert all(rule["health"] != "err" for group in groups for rule in group["rules"]), groups
    comparison = r" (==|<|>) "
    return {
        re.sub(comparison, r" \1 bool ", rule["query"]) for each in groups for rule in each["rules"]
    }


@needs_prometheus
async def test_every_query_of_the_dashboard_and_of_the_alerts_returns_data(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    async with serving() as upstream:
        upstream.answer = answer
        remote = (
            "--engine",
            "openai",
            "--base-url",
            upstream.url,
            "--model",
            "m",
            "--retries",
            "0",
        )
        async with daemon(
            *remote, "--metrics-listen", "127.0.0.1:0", "--store", f"sqlite:{tmp_path}/s.db"
        ) as d:
            address = (await d.logged("serving metrics"))["address"]
            async with prometheus(tmp_path, address) as api:
                missing = dashboard_queries() | await rule_queries(api)
                assert len(missing) > 30
                calls = asyncio.create_task(load(d))
                try:
                    async with asyncio.timeout(SECONDS):
                        while missing and not calls.done():
                            missing = {q for q in missing if not await has_data(api, q)}
                except TimeoutError:
                    pytest.fail(f"no data: {sorted(missing)}")
                finally:
                    calls.cancel()
                    await asyncio.wait([calls])
                assert calls.cancelled(), calls
            promtool("check", "metrics", given=await read(f"http://{address}/metrics"))
