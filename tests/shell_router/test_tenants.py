"""Named keys: each client sees and ends its own runs, within its own bounds."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shell_router.admission import Admission, Line, Share
from shell_router.app import build_app
from shell_router.auth import Guard
from shell_router.config import ClientCaps, ConfigError, KeysConfig
from shell_router.errors import InvalidApiKey, TooManyRuns
from shell_router.handlers.keys import SERVICE
from shell_router.keys import load_keys
from shell_router.tenants import Tenant
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import CHAT_PATH, Held, limited_service, serving
from tests.waiting import until

ADA: dict[str, Any] = {"name": "ada", "key": "ada-secret-key"}
BOB: dict[str, Any] = {"name": "bob", "sha256": hashlib.sha256(b"bob-secret-key").hexdigest()}
OPS: dict[str, Any] = {"name": "ops", "key": "ops-secret-key", "operator": True}


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-secret-key"}


def written(folder: Path, *keys: dict[str, Any]) -> KeysConfig:
    file = folder / "keys.json"
    file.write_text(json.dumps({"keys": keys}))
    return KeysConfig(file=str(file))


def app_of(
    engine: FakeEngine, keys: KeysConfig, admission: Admission | None = None, caps: ClientCaps | None = None
) -> web.Application:
    return build_app(limited_service(engine, admission), body_bytes=10_000, guard=Guard(named=keys, caps=caps))


async def test_each_sees_and_ends_its_own_runs_and_an_operator_all(tmp_path: Path) -> None:
    app = app_of(FakeEngine(), written(tmp_path, ADA, BOB, OPS))
    body = {"model": "t", "messages": [{"role": "user", "content": "a secret question"}]}
    async with serving(app) as client:
        status, answer, _ = await client.call("POST", CHAT_PATH, body, bearer("ada"))
        assert status == 200
        run = f"/v1/runs/{answer['id']}"
        for method, path in (("GET", run), ("GET", f"{run}/trace"), ("GET", f"{run}/events"), ("DELETE", run)):
            status, refused, _ = await client.call(method, path, None, bearer("bob"))
            assert (status, refused["error"]["code"]) == (404, "run_not_found"), path
        unknown = await client.call("GET", "/v1/runs/run-0", None, bearer("bob"))
        seen = await client.call("GET", run, None, bearer("bob"))
        assert unknown[1]["error"]["message"].replace("run-0", answer["id"]) == seen[1]["error"]["message"]
        lists = {
            name: (await client.call("GET", "/v1/runs", None, bearer(name)))[1]["data"]
            for name in ("ada", "bob", "ops")
        }
        assert {name: len(found) for name, found in lists.items()} == {"ada": 1, "bob": 0, "ops": 1}
        for name in ("ada", "ops"):
            status, record, _ = await client.call("GET", run, None, bearer(name))
            assert (status, record["owner"]) == (200, "ada")
        assert (await client.call("DELETE", run, None, bearer("ops")))[0] == 200
        status, refused, _ = await client.call("GET", "/metrics", None, bearer("ada"))
        assert (status, refused["error"]["code"]) == (403, "not_allowed")
        async with client.session.get(f"{client.url}/metrics", headers=bearer("ops")) as reply:
            assert reply.status == 200


async def test_a_share_bounds_one_client_and_no_other(tmp_path: Path) -> None:
    held = Held()
    keys = written(tmp_path, ADA | {"concurrent_runs": 1, "queued_runs": 1}, BOB)
    app = app_of(FakeEngine(gate=held), keys, Admission(running=4, waiting=4))
    body = {"model": "t", "messages": [{"role": "user", "content": "why?"}]}
    async with serving(app) as client:
        first, second = (asyncio.create_task(client.call("POST", CHAT_PATH, body, bearer("ada"))) for _ in range(2))
        await held.wait_for(1)
        await until(lambda: _line(app).waiting == 1)
        status, refused, headers = await client.call("POST", CHAT_PATH, body, bearer("ada"))
        assert (status, refused["error"]["code"]) == (429, "too_many_runs")
        assert "'ada'" in refused["error"]["message"]
        assert int(headers["Retry-After"]) >= 1
        other = asyncio.create_task(client.call("POST", CHAT_PATH, body, bearer("bob")))
        await held.wait_for(2)
        held.open.set()
        assert [(await each)[0] for each in (first, second, other)] == [200, 200, 200]


def _line(app: web.Application) -> Line:
    return app[SERVICE].admission.line


def test_a_place_goes_to_the_first_whose_share_has_room() -> None:
    line = Line(running=2, waiting=3)
    ada, bob = Share("ada", running=1), Share("bob")
    running = line.join(0, ada)
    mine, theirs = line.join(0, bob), line.join(0, ada)
    later = line.join(0, bob)
    assert (mine.admitted, theirs.admitted, later.admitted) == (0, None, None)
    assert line.leave(mine, 1) is later, "ada has its one place"
    assert line.leave(running, 2) is theirs
    with pytest.raises(TooManyRuns, match="'ada'"):
        line.join(3, Share("ada", running=1, waiting=0))


@pytest.mark.parametrize(
    ("caps", "fields", "param"),
    [
        ({"max_new_tokens": 64}, {"max_tokens": 65}, "max_tokens"),
        ({"max_new_tokens": 64}, {"graft": {"sampling": {"max_new_tokens": 65}}}, "graft.sampling.max_new_tokens"),
        ({"agent_sampling": False}, {"graft": {"sampling": {"temperature": 0}}}, "graft.sampling"),
    ],
)
async def test_what_a_client_may_ask_for_is_capped(
    tmp_path: Path, caps: dict[str, Any], fields: dict[str, Any], param: str
) -> None:
    engine = FakeEngine()
    body = {"model": "t", "messages": [{"role": "user", "content": "why?"}]}
    for of_key, of_router in (({"caps": caps}, None), ({}, ClientCaps(**caps))):
        keys = written(tmp_path, ADA | of_key)
        async with serving(app_of(engine, keys, caps=of_router)) as client:
            status, refused, _ = await client.call("POST", CHAT_PATH, body | fields, bearer("ada"))
            assert (status, refused["error"]["param"]) == (400, param)
            assert engine.requests == []
            assert (await client.call("POST", CHAT_PATH, body | {"max_tokens": 8}, bearer("ada")))[0] == 200
            engine.requests.clear()


async def test_a_deadline_may_be_shorter_than_the_cap_but_not_longer(tmp_path: Path) -> None:
    keys = written(tmp_path, ADA | {"caps": {"deadline_s": 100.0}})
    body = {"model": "t", "messages": [{"role": "user", "content": "why?"}]}
    async with serving(app_of(FakeEngine(), keys)) as client:
        for asked, given in ((None, 100.0), (7.0, 7.0), (1000.0, 100.0)):
            graft = {} if asked is None else {"graft": {"deadline_s": asked}}
            _, answer, _ = await client.call("POST", CHAT_PATH, body | graft, bearer("ada"))
            _, record, _ = await client.call("GET", f"/v1/runs/{answer['id']}", None, bearer("ada"))
            assert record["failures"]["deadline_s"] == given


def test_a_file_is_read_again_when_it_changes_and_kept_when_it_is_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    keys = written(tmp_path, ADA)
    guard = Guard(named=keys, clock=lambda: now)
    assert guard.tenant("Bearer ada-secret-key").name == "ada"
    with pytest.raises(InvalidApiKey):
        guard.tenant("Bearer bob-secret-key")
    written(tmp_path, BOB, OPS)
    now = 2.0
    assert guard.tenant("Bearer bob-secret-key") == Tenant("bob", share=Share("bob"))
    with pytest.raises(InvalidApiKey):
        guard.tenant("Bearer ada-secret-key")
    assert keys.file is not None
    Path(keys.file).write_text('{"keys": [{"name": "eve", "key": "eve-secret-key"')
    now = 4.0
    assert guard.tenant("Bearer ops-secret-key").operator
    os.unlink(keys.file)
    now = 6.0
    assert guard.tenant("Bearer ops-secret-key").operator
    assert "the keys stay as they were" in caplog.text
    assert "secret" not in caplog.text


def test_the_single_key_is_an_operators_beside_named_ones(tmp_path: Path) -> None:
    guard = Guard("the-one-key", named=written(tmp_path, ADA))
    assert guard.tenant("Bearer the-one-key").operator
    assert not guard.tenant("Bearer ada-secret-key").operator


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([], r"Expected `array` of length >= 1 - at `\$.keys`"),
        ([{"name": "a"}], r"a key needs either `key` or `sha256` - at `\$.keys\[0\]`"),
        ([ADA | {"sha256": "0" * 64}], "a key needs either `key` or `sha256`"),
        ([ADA, ADA | {"key": "another-key"}], r"Name 'ada' is used twice - at `\$.keys\[1\].name`"),
        ([ADA, ADA | {"name": "eve"}], r"The key of 'eve' is that of 'ada' - at `\$.keys\[1\]`"),
        ([{"name": "a", "key": "short"}], r"at `\$.keys\[0\].key`"),
        ([ADA | {"concurrent_runs": 0}], r"at `\$.keys\[0\].concurrent_runs`"),
        ([ADA | {"role": "x"}], "unknown field `role`"),
    ],
)
def test_what_is_wrong_with_keys_is_told_by_its_place_and_without_them(
    tmp_path: Path, keys: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        load_keys(written(tmp_path, *keys), {})
    assert "secret" not in str(refused.value)


def test_keys_come_from_the_environment_as_well() -> None:
    config = KeysConfig(env="GRAFT_KEYS")
    assert load_keys(config, {"GRAFT_KEYS": json.dumps({"keys": [ADA]})}).keys[0].name == "ada"
    for environment in ({}, {"GRAFT_KEYS": " "}, {"GRAFT_KEYS": "ada-secret-key"}):
        with pytest.raises(ConfigError, match=r"keys.env: the environment variable GRAFT_KEYS") as refused:
            load_keys(config, environment)
        assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_keys(KeysConfig(file="/nowhere/keys.json"), {})


async def test_caps_hold_without_keys() -> None:
    engine = FakeEngine()
    anyone = Tenant(None, operator=True, caps=ClientCaps(max_new_tokens=8))
    app = build_app(limited_service(engine), body_bytes=10_000, anyone=anyone)
    async with serving(app) as client:
        status, refused, _ = await client.chat(max_tokens=9)
        assert (status, refused["error"]["param"]) == (400, "max_tokens")
        assert (await client.chat(max_tokens=8))[0] == 200
