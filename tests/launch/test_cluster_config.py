"""A wrong cluster JSON is refused with the file and the place in it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.config import ConfigError, load_cluster

CFGS = Path(__file__).resolve().parents[2] / "cfgs" / "cluster"
SOUND: dict[str, Any] = {
    "name": "c",
    "models": [{"name": "m", "path": "builtin:tiny-llama", "device": "cpu", "prefill": [{}], "decode": [{}]}],
    "shell_router": {"trees": ["../trees/t.json"]},
}
SERVER = {"url": "http://host/v1"}


def written(tmp_path: Path, change: Callable[[dict[str, Any]], object], sound: dict[str, Any] | None = None) -> Path:
    document = copy.deepcopy(sound or SOUND)
    change(document)
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(document))
    return path


def model(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["models"][0]
    return found


@pytest.mark.parametrize(
    ("change", "message", "place"),
    [
        (lambda d: d.update(nmae="c"), "unknown field `nmae`", ""),
        (lambda d: d.pop("name"), "missing required field `name`", ""),
        (lambda d: d.update(name="a b"), "matching regex", "$.name"),
        (lambda d: d.update(models=[]), "length >= 1", "$.models"),
        (lambda d: d.update(otlp_endpoint="http://host:4317"), "matching regex", "$.otlp_endpoint"),
        (lambda d: d.update(otlp_endpoint="host"), "matching regex", "$.otlp_endpoint"),
        (lambda d: model(d).pop("prefill"), "`decode` workers need at least one `prefill`", "$.models[0].prefill"),
        (lambda d: model(d).update(decode=[]), "`prefill` workers need at least one `decode`", "$.models[0].decode"),
        (lambda d: model(d).update(prefill=[], decode=[]), "or `regular` workers, or `openai`", "$.models[0]"),
        (lambda d: model(d).update(regular=[{}]), "`regular` workers has no others", "$.models[0].prefill"),
        (lambda d: model(d).update(openai=SERVER), "`openai` has no workers", "$.models[0].prefill"),
        (lambda d: model(d).update(openai={**SERVER, "url": "host/v1"}), "matching regex", "$.models[0].openai.url"),
        (lambda d: model(d).pop("device"), "Workers need a device", "$.models[0].device"),
        (lambda d: model(d).update(device="tpu"), "Invalid enum value 'tpu'", "$.models[0].device"),
        (lambda d: model(d).update(page_size=0), ">= 1", "$.models[0].page_size"),
        (lambda d: model(d).update(mem_fraction_static=1.5), "< 1.0", "$.models[0].mem_fraction_static"),
        (lambda d: model(d)["decode"][0].update(cores=[-1]), ">= 0", "$.models[0].decode[0].cores[0]"),
        (
            lambda d: model(d).update(flags=["--api-key", "secret"]),
            "Workers that Graft starts have no key (--api-key)",
            "$.models[0].flags",
        ),
        (
            lambda d: model(d)["decode"][0].update(flags=["--admin-api-key=x"]),
            "have no key (--admin-api-key)",
            "$.models[0].decode[0].flags",
        ),
        (lambda d: model(d)["decode"][0].update(cores=[1, 1]), "1 is listed twice", "$.models[0].decode[0].cores"),
        (lambda d: model(d)["prefill"][0].update(port=70000), "<= 65535", "$.models[0].prefill[0].port"),
        (
            lambda d: model(d)["decode"][0].update(bootstrap_port=1),
            "unknown field `bootstrap_port`",
            "$.models[0].decode[0]",
        ),
        (lambda d: model(d)["prefill"][0].update(gpus=[0]), "takes no GPUs", "$.models[0].prefill[0].gpus"),
        (lambda d: model(d)["prefill"][0].update(tp_size=2), "takes no GPUs", "$.models[0].prefill[0].tp_size"),
        (
            lambda d: (model(d).update(device="cuda"), model(d)["decode"][0].update(gpus=[0, 1], tp_size=4)),
            "2 GPUs are listed and `tp_size` is 4",
            "$.models[0].decode[0].tp_size",
        ),
        (
            lambda d: model(d)["decode"][0].update(mem_fraction_static=1),
            "< 1.0",
            "$.models[0].decode[0].mem_fraction_static",
        ),
        (lambda d: model(d).update(max_draft_tokens=0), ">= 1", "$.models[0].max_draft_tokens"),
        (
            lambda d: model(d)["prefill"][0].update(drafts=True),
            "A prefill worker decodes nothing, so it has no drafts",
            "$.models[0].prefill[0].drafts",
        ),
        (
            lambda d: model(d).update(drafts=True, flags=["--speculative-algorithm", "EAGLE"]),
            "--speculative-algorithm is not for workers with `drafts`, which have their own",
            "$.models[0].flags",
        ),
        (
            lambda d: model(d)["decode"][0].update(drafts=True, flags=["--speculative-num-draft-tokens=4"]),
            "--speculative-num-draft-tokens is not for workers with `drafts`",
            "$.models[0].decode[0].flags",
        ),
        (lambda d: d["models"].append(d["models"][0]), "'m' is used twice", "$.models[1].name"),
        (lambda d: d["shell_router"].pop("trees"), "missing required field `trees`", "$.shell_router"),
        (
            lambda d: d["shell_router"].update(limits={"body_bytes": 0}),
            ">= 1",
            "$.shell_router.limits.body_bytes",
        ),
    ],
)
def test_errors_name_the_file_and_the_json_path(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str, place: str
) -> None:
    path = written(tmp_path, change)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_cluster(path)
    assert str(caught.value).startswith(f"{path}: ")
    if place:
        assert str(caught.value).endswith(f" - at `{place}`")


@pytest.mark.parametrize(
    "served",
    [
        {"regular": [{"cores": [0]}]},
        {"openai": {"url": "https://host/v1", "served_name": "a/b", "key_env": "KEY"}, "device": None},
    ],
)
def test_other_ways_to_serve(tmp_path: Path, served: dict[str, Any]) -> None:
    def change(document: dict[str, Any]) -> None:
        (one,) = document["models"]
        del one["prefill"], one["decode"]
        one.update(served)

    config = load_cluster(written(tmp_path, change))
    assert len(list(config.workers())) == len(served.get("regular", []))


@pytest.mark.parametrize(
    ("second", "place"),
    [
        (lambda d: model(d)["decode"][0].update(port=9000), "$.models[0].decode[0].port"),
        (lambda d: model(d)["prefill"][0].update(bootstrap_port=9000), "$.models[0].prefill[0].bootstrap_port"),
        (lambda d: model(d).update(router={"port": 9000}), "$.models[0].router.port"),
        (lambda d: d["shell_router"].update(port=9000), "$.shell_router.port"),
    ],
)
def test_two_processes_cannot_have_one_port(
    tmp_path: Path, second: Callable[[dict[str, Any]], object], place: str
) -> None:
    def change(document: dict[str, Any]) -> None:
        model(document)["prefill"][0]["port"] = 9000
        second(document)

    message = f"Port 9000 is already taken by `$.models[0].prefill[0].port` - at `{place}`"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_cluster(written(tmp_path, change))


def test_workers_without_drafts_may_speculate_otherwise(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        model(document).update(drafts=True)
        model(document)["decode"][0].update(drafts=False, flags=["--speculative-algorithm", "NGRAM"])

    config = load_cluster(written(tmp_path, change))
    assert {worker.role: worker.drafts for worker in config.workers()} == {"prefill": False, "decode": False}


def test_a_port_that_is_left_open_clashes_with_nothing(tmp_path: Path) -> None:
    assert list(load_cluster(written(tmp_path, lambda d: None)).fixed_ports()) == []


def test_trees_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_cluster(written(tmp_path, lambda d: None))
    assert config.shell_router.trees == (str(tmp_path.parent / "trees" / "t.json"),)


def test_what_is_no_json_and_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_cluster(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="the JSON ends here"):
        load_cluster(path)


@pytest.mark.parametrize("path", sorted(CFGS.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_configurations_load_and_are_named_after_their_file(path: Path) -> None:
    assert load_cluster(path).name == path.stem


SPREAD: dict[str, Any] = {
    "name": "c",
    "hosts": {"left": {"address": "192.0.2.1"}, "right": {"address": "192.0.2.2"}},
    "models": [
        {
            "name": "m",
            "path": "builtin:tiny-llama",
            "device": "cpu",
            "prefill": [{"host": "left", "port": 9000, "bootstrap_port": 9001}],
            "decode": [{"host": "right", "port": 9000}],
            "router": {"host": "right", "port": 9002},
        }
    ],
    "shell_router": {"host": "right", "port": 9003, "trees": []},
}


@pytest.mark.parametrize(
    ("change", "message", "place"),
    [
        (lambda d: model(d)["prefill"][0].update(host="middle"), "Host 'middle' is in no table", "prefill[0].host"),
        (lambda d: model(d)["decode"][0].pop("host"), "each process needs a host", "decode[0].host"),
        (lambda d: model(d)["router"].pop("host"), "each process needs a host", "router.host"),
        (lambda d: d["shell_router"].pop("host"), "each process needs a host", "$.shell_router.host"),
        (lambda d: model(d)["prefill"][0].pop("port"), "cannot be left to be chosen", "prefill[0].port"),
        (lambda d: model(d)["prefill"][0].pop("bootstrap_port"), "Other hosts must know", "prefill[0].bootstrap_port"),
        (lambda d: model(d)["router"].pop("port"), "Other hosts must know this port", "router.port"),
        (lambda d: d["shell_router"].pop("port"), "Other hosts must know this port", "$.shell_router.port"),
        (
            lambda d: model(d)["decode"][0].update(host="left"),
            "Port 9000 is already taken by `$.models[0].prefill[0].port`",
            "$.models[0].decode[0].port",
        ),
        (lambda d: d["hosts"]["left"].update(address="left.lan"), "is no IPv4 address", "$.hosts.left.address"),
        (lambda d: d["hosts"]["left"].update(address="0.0.0.0"), "is no IPv4 address", "$.hosts.left.address"),
        (
            lambda d: d["hosts"]["right"].update(address="192.0.2.1"),
            "Address 192.0.2.1 is already that of host left",
            "$.hosts.right.address",
        ),
        (lambda d: d.pop("hosts"), "Host 'left' is in no table: `hosts` is missing", "prefill[0].host"),
        (lambda d: d["shell_router"].update(listen=""), "length >= 1", "$.shell_router.listen"),
    ],
)
def test_what_can_be_wrong_with_several_machines(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str, place: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_cluster(written(tmp_path, change, SPREAD))
    assert str(caught.value).endswith(f"{place}`")


def test_each_machine_has_its_part(tmp_path: Path) -> None:
    config = load_cluster(written(tmp_path, lambda d: d["shell_router"].update(api_key_env="KEY"), SPREAD))
    assert [worker.path for worker in config.workers("left")] == ["$.models[0].prefill[0]"]
    assert [worker.path for worker in config.workers("right")] == ["$.models[0].decode[0]"]
    assert len(list(config.workers())) == 2
    assert list(config.fixed_ports("left")) == [
        ("$.models[0].prefill[0].port", "192.0.2.1", 9000),
        ("$.models[0].prefill[0].bootstrap_port", "192.0.2.1", 9001),
    ]
    assert [path for path, _, _ in config.fixed_ports("right")][-1] == "$.shell_router.port"
    assert (config.has_shell_router("left"), config.has_shell_router("right")) == (False, True)
    assert (list(config.key_variables("left")), len(list(config.key_variables("right")))) == ([], 1)
    assert (config.part_name("left"), config.part_name(None)) == ("c@left", "c")


def test_a_machine_without_a_worker_of_a_model_needs_its_tokenizer_for_the_shell_router_only(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["hosts"]["third"] = {"address": "192.0.2.3"}
        document["shell_router"]["host"] = "third"
        model(document)["router"]["host"] = "left"
        model(document)["decode"][0] |= {"host": "left", "port": 9005}

    config = load_cluster(written(tmp_path, change, SPREAD))
    needed = {host: [path for _, path in config.paths(host)] for host in config.hosts}
    assert needed == {"left": ["builtin:tiny-llama"], "right": [], "third": ["builtin:tiny-llama"]}


@pytest.mark.parametrize(
    ("document", "host", "message"),
    [
        (SPREAD, None, "cluster c is on the hosts left, right: say with --host which of them this is"),
        (SPREAD, "middle", "cluster c has no host 'middle'; its table `hosts` has left, right"),
        (SOUND, "left", "cluster c has no table `hosts`, so there is no host 'left' in it"),
    ],
)
def test_who_starts_must_say_which_part(
    tmp_path: Path, document: dict[str, Any], host: str | None, message: str
) -> None:
    config = load_cluster(written(tmp_path, lambda d: None, document))
    with pytest.raises(ConfigError, match=re.escape(message)):
        config.check_host(host)


def test_the_shipped_cluster_on_two_machines() -> None:
    config = load_cluster(CFGS / "two_hosts.json")
    assert list(config.hosts) == ["left", "right"]
    assert [worker.path for worker in config.workers("left")] == ["$.models[0].prefill[0]", "$.models[0].prefill[1]"]
    assert [worker.path for worker in config.workers("right")] == ["$.models[0].decode[0]", "$.models[0].decode[1]"]
    assert not config.has_shell_router("left")
    for host in config.hosts.values():
        assert host.address.startswith("192.0.2."), "documentation's network, nobody's"
