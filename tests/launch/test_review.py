"""What of a cluster's JSON cannot work, or might not be meant, is told with its JSON path before anything starts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launch import checkpoint
from launch.config import ClusterConfig, load_cluster
from launch.flags import review_flags
from launch.preflight import examine
from launch.review import context_limit, review, review_pools
from launch.shipped import folder, names
from shell_router.core.review import Remark
from shell_router.needs import Need

TREE = {
    "name": "t",
    "model": "m",
    "templates": {"ask": {"user": "<|question|>"}, "merge": {"user": "<|question|> <|answers|>"}},
    "agents": [
        {"id": "p1", "template": "ask"},
        {"id": "p2", "template": "ask"},
        {"id": "root", "template": "merge", "inputs": ["p1", "p2"]},
    ],
}
CORES = sorted(os.sched_getaffinity(0))
MODEL = {
    "name": "m",
    "path": "builtin:tiny-llama",
    "device": "cpu",
    "context_length": 8192,
    "prefill": [{"cores": [CORES[0]]}],
    "decode": [{"cores": [CORES[-1]]}] if len(CORES) > 1 else [{}],
}


def cluster(
    tmp_path: Path,
    model: Mapping[str, Any] = {},
    tree: Mapping[str, Any] = {},
    shell_router: Mapping[str, Any] = {},
    **fields: Any,
) -> ClusterConfig:
    """A sound cluster of one tree but for what is given."""
    (tmp_path / "t.json").write_text(json.dumps({**TREE, **tree}))
    document = {
        "name": "c",
        "models": [{**MODEL, **model}],
        "shell_router": {"trees": ["t.json"], **shell_router},
        **fields,
    }
    path = tmp_path / "c.json"
    path.write_text(json.dumps(document))
    return load_cluster(path)


def errors(remarks: Sequence[Remark]) -> list[str]:
    return [remark.text for remark in remarks if remark.error]


def warnings(remarks: Sequence[Remark]) -> list[str]:
    return [remark.text for remark in remarks if not remark.error]


def reviewed(config: ClusterConfig, environment: Mapping[str, str] = {}) -> list[Remark]:
    return list(review(config, None, environment))


@pytest.mark.parametrize("name", names("cluster"))
def test_what_ships_has_no_error_that_files_tell(name: str) -> None:
    config = load_cluster(folder("cluster") / f"{name}.json")
    found = list(review(config, None, {}))
    assert errors(found) == []
    # A pair for the overlap benchmark serves no tree, and models of a GPU box are not here.
    mine = [told for told in warnings(found) if "not on this machine" not in told and "no tree is served" not in told]
    assert mine == []


@pytest.fixture
def built() -> None:
    """The tests below need its tokenizer."""
    checkpoint.resolve("builtin:tiny-llama")


@pytest.mark.heavy
@pytest.mark.usefixtures("built")
class TestTried:
    """With the real tokenizers, in the real process."""

    def test_a_sound_cluster(self, tmp_path: Path) -> None:
        assert [r for r in examine(cluster(tmp_path)) if "memory" not in r.text] == []

    def test_answers_that_no_context_holds(self, tmp_path: Path) -> None:
        agents = [{**TREE["agents"][0], "sampling": {"max_new_tokens": 100_000}}, *TREE["agents"][1:]]  # type: ignore[index]
        p1, root = errors(examine(cluster(tmp_path, tree={"agents": agents})))
        for told, agent in ((p1, "p1"), (root, "root")):
            assert told.startswith("$.shell_router.trees[0]: ")
            assert f"t.json: $.agents[0].sampling.max_new_tokens: agent '{agent}' may come to 10" in told
            assert "model 'm' takes 8,192 (`context_length`), so every run would be refused" in told

    def test_a_context_that_leaves_no_room_for_a_question(self, tmp_path: Path) -> None:
        found = examine(cluster(tmp_path, model={"context_length": 1600}))
        (told,) = warnings(found)
        assert "$.sampling.max_new_tokens: agent 'root' leaves " in told
        assert "tokens for the question, of the 1,600 that model 'm' takes" in told

    def test_pools(self, tmp_path: Path) -> None:
        tiny, none = (cluster(tmp_path, model={"max_total_tokens": size}) for size in (10, 500))
        assert errors(examine(tiny))[0] == ("$.models[0].max_total_tokens: a pool of 10 tokens has not one page of 16")
        (told,) = errors(examine(none))
        assert told.startswith("$.models[0].max_total_tokens: a pool of 500 tokens takes no request at all: agent 'p")
        assert told.endswith("and SGLang keeps 512 free")

    def test_early_exit_by_likeness_needs_an_embedding_model(self, tmp_path: Path) -> None:
        (told,) = errors(examine(cluster(tmp_path, tree={"early_exit": {"mode": "default"}})))
        assert "t.json: tree 't': $.early_exit: mode 'default' compares answers" in told

    def test_a_tokenizer_that_does_not_load(self, tmp_path: Path) -> None:
        broken = tmp_path / "model"
        shutil.copytree(checkpoint.resolve("builtin:tiny-llama"), broken)
        (broken / "tokenizer.json").write_text("{}")
        (told,) = errors(examine(cluster(tmp_path, model={"path": str(broken)})))
        assert told.startswith(f"$.models[0].path: the tokenizer in {broken} cannot be read: ")

    @pytest.mark.parametrize(
        ("template", "told"),
        [
            ("{{ raise_exception('System role not supported') }}", "System role not supported"),
            ("{% if messages %}", "Unexpected end of template"),
            (None, "has no chat template"),
        ],
    )
    def test_a_chat_template_that_does_not_take_the_trees(
        self, tmp_path: Path, template: str | None, told: str
    ) -> None:
        model = tmp_path / "model"
        shutil.copytree(checkpoint.resolve("builtin:tiny-llama"), model)
        (model / "chat_template.jinja").unlink()
        if template is not None:
            (model / "chat_template.jinja").write_text(template)
        (error,) = errors(examine(cluster(tmp_path, model={"path": str(model)})))
        assert error.startswith(("$.models[0].path: ", "$.shell_router.trees[0]: "))
        assert told in error


def test_what_keeps_workers_from_drafting(tmp_path: Path) -> None:
    def told(**model: Any) -> list[Remark]:
        return [remark for remark in reviewed(cluster(tmp_path, model=model)) if "raft" in remark.text]

    assert told(drafts=True, overlap_schedule=True) == []
    decode = {"flags": ["--pp-size", "2"]}
    assert errors(told(drafts=True, flags=["--pipeline-parallel-size=2"], decode=[decode])) == [
        "$.models[0].flags: SGLang has no drafts with --pipeline-parallel-size (`drafts`)",
        "$.models[0].decode[0].flags: SGLang has no drafts with --pp-size (`drafts`)",
    ]
    assert told(decode=[decode]) == []
    assert warnings(told(drafts=True, decode=[{"drafts": False}], max_draft_tokens=4)) == [
        "$.models[0].drafts: none of its workers drafts: each says that it does not",
        "$.models[0].max_draft_tokens: no worker drafts, so it has no effect",
    ]


@pytest.mark.heavy
def test_flags_are_tried_by_the_programs_own_parsers(tmp_path: Path) -> None:
    config = cluster(
        tmp_path,
        model={
            "flags": ["--no-such-flag"],
            "prefill": [{"flags": ["--chunked-prefill-size", "many"]}, {"flags": ["--port", "1"]}],
            "decode": [{"flags": ["--mem-fraction", "0.5"]}, {"flags": ["--max-running-requests", "8"]}],
            "router": {"flags": ["--polcy", "random"]},
        },
    )
    found = list(review_flags(config, None))
    assert errors(found) == [
        "$.models[0].flags: SGLang does not take it: unrecognized arguments: --no-such-flag",
        "$.models[0].router.flags: sglang-router does not take it: unrecognized arguments: --polcy random; "
        "did you mean --policy?",
        "$.models[0].prefill[0].flags: SGLang does not take it: argument --chunked-prefill-size: "
        "invalid int value: 'many'",
        "$.models[0].prefill[1].flags: `port` is not for flags: others rely on it; say it with `port`",
    ]
    assert warnings(found) == [
        "$.models[0].decode[0].flags: `mem_fraction_static` is better said with the field `mem_fraction_static`"
    ]


@pytest.mark.heavy
def test_the_flags_with_which_they_trace_are_known_to_the_programs(tmp_path: Path) -> None:
    flags = ["--enable-trace", "--otlp-traces-endpoint", "10.0.0.7:4317"]
    config = cluster(tmp_path, model={"flags": flags, "router": {"flags": flags}})
    assert list(review_flags(config, None)) == []


def test_without_flags_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.flags.subprocess.run", None)
    assert list(review_flags(cluster(tmp_path), None)) == []


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (
            {"templates": {"ask": {"user": "<|answr:p1|>"}}},
            "$.templates.ask.user: <|answr:p1|> is no mark; did you mean <|answer:p1|>?",
        ),
        (
            {"templates": {"ask": {"user": "<|question|>", "system": "<|answer:p1|>"}}},
            "$.templates.ask.system: <|answer:p1|> would reach the model as it is",
        ),
        ({"templates": {"ask": {"user": "Hi."}, "merge": {"user": "<|answers|>"}}}, "$.templates: no agent has"),
        ({"model": "n"}, "asks for model n; the cluster serves m"),
        ({"name": 1}, "Expected `str`, got `int` - at `$.name`"),
    ],
)
def test_trees_that_cannot_work(tmp_path: Path, tree: Mapping[str, Any], told: str) -> None:
    found = reviewed(cluster(tmp_path, tree=tree))
    assert any(each.startswith("$.shell_router.trees[0]: ") and told in each for each in errors(found))


def test_a_proposer_without_the_question(tmp_path: Path) -> None:
    templates = {**TREE["templates"], "ask": {"user": "Hi."}}  # type: ignore[dict-item]
    found = reviewed(cluster(tmp_path, tree={"templates": templates}))
    assert errors(found) == []
    assert [f"agent '{each}' reads nobody's answer and has no <|question|>" in told
            for each, told in zip(("p1", "p2"), warnings(found), strict=True)] == [True, True]  # fmt: skip


def test_a_model_that_no_tree_asks(tmp_path: Path) -> None:
    config = cluster(tmp_path)
    two = msgspec.structs.replace(
        config, models=(*config.models, msgspec.structs.replace(config.models[0], name="other"))
    )
    assert warnings(reviewed(two)) == ["$.models[1]: no tree asks model 'other'"]


MODEL_FILES: dict[str, dict[str, Any]] = {
    "config.json": {"max_position_embeddings": 4096},
    "model.safetensors": {},
    "tokenizer.json": {},
}


def checkpoint_files(folder: Path, files: Mapping[str, object]) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return str(folder)


def test_a_context_that_is_longer_than_the_models(tmp_path: Path) -> None:
    path = checkpoint_files(tmp_path / "model", MODEL_FILES)
    config = cluster(tmp_path, model={"path": path})
    assert errors(reviewed(config)) == [
        "$.models[0].context_length: 8,192 is more than the 4,096 of the model's config.json: "
        "SGLang refuses that without SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"
    ]
    allowed = reviewed(config, {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"})
    assert errors(allowed) == []
    assert "its answers may be senseless" in warnings(allowed)[0]


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"text_config": {"max_position_embeddings": 100}}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "linear", "factor": 4}}, 400),
        ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "llama3", "factor": 4}}, 100),
        ({"max_position_embeddings": 9, "rope_parameters": {"factor": 4, "original_max_position_embeddings": 2}}, 9),
        ({"max_position_embeddings": 100, "model_max_length": 50}, 50),
        ({}, None),
    ],
)
def test_the_context_is_read_as_sglang_reads_it(config: Mapping[str, Any], limit: int | None) -> None:
    assert context_limit(config) == limit


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    files: dict[str, dict[str, Any]] = {name: MODEL_FILES[name] for name in ("config.json", "tokenizer.json")}
    bare = {"path": checkpoint_files(tmp_path / "bare", files), "context_length": 4096}
    (told,) = errors(reviewed(cluster(tmp_path, model=bare)))
    assert told.startswith(f"$.models[0].path: {bare['path']}: no weights are there")
    assert errors(reviewed(cluster(tmp_path, model={**bare, "flags": ["--load-format", "dummy"]}))) == []

    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    files = {**files, "model.safetensors.index.json": index, "1.safetensors": {}}
    torn = checkpoint_files(tmp_path / "torn", files)
    (told,) = errors(reviewed(cluster(tmp_path, model={"path": torn, "context_length": 4096})))
    assert told.endswith("1 of 2 files with weights are missing, 2.safetensors for one")


def test_a_model_on_the_hub_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    config = cluster(tmp_path, model={"path": "owner/model"})
    assert warnings(reviewed(config)) == [
        "$.models[0].path: owner/model: it is not on this machine; a start fetches it: `hf download owner/model`"
    ]
    (told,) = errors(reviewed(config, {"HF_HUB_OFFLINE": "1"}))
    assert "keep it from being fetched" in told

    # What `hf download owner/model config.json` leaves, for a plan.
    snapshot = tmp_path / "hub" / "models--owner--model" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0")
    (snapshot / "config.json").write_text(json.dumps(MODEL_FILES["config.json"]))
    (told,) = warnings(reviewed(cluster(tmp_path, model={"path": "owner/model", "context_length": 4096})))
    assert "no weights are there" in told


SERVER = {"name": "m", "path": "builtin:tiny-llama", "openai": {"url": "http://127.0.0.1:1/v1"}}


@pytest.mark.parametrize("url", ["http://", "http:///v1", "https://a b/v1", "http://host:port/v1", "http://host:99999"])
def test_a_url_without_a_host(tmp_path: Path, url: str) -> None:
    model = {**SERVER, "openai": {"url": url}}
    config = cluster(tmp_path, model={"prefill": [], "decode": [], "device": None, **model})
    assert errors(reviewed(config)) == [f"$.models[0].openai.url: {url} is no URL with a host"]


def test_fields_that_mean_nothing_without_workers(tmp_path: Path) -> None:
    config = cluster(tmp_path, model={**SERVER, "prefill": [], "decode": [], "flags": ["--x"]})
    assert warnings(reviewed(config)) == [
        f"$.models[0].{field}: nothing is started for a model with `openai`, so it has no effect"
        for field in ("device", "flags")
    ]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": {"page_size": 8192}}, "$.models[0].page_size: a page of 8,192 tokens is the whole context"),
        (
            {"model": {"prefill": [], "decode": [], "regular": [{"sessions": {"ttl_s": 1}}]}},
            "$.models[0].regular[0].sessions: a regular worker has no sessions",
        ),
        (
            {"model": {"decode": [{"cores": [CORES[0]]}]}},
            f"$.models[0].decode[0].cores: core {CORES[0]} is that of `$.models[0].prefill[0]` too",
        ),
        ({"startup_timeout_s": 1}, "$.startup_timeout_s: no worker is ready within 1 s"),
        ({"shell_router": {"limits": {"body_bytes": 100}}}, "$.shell_router.limits.body_bytes: hardly a question"),
        ({"shell_router": {"trees": []}}, "$.shell_router.trees: no tree is served, so nothing can be asked"),
    ],
)
def test_what_might_not_be_meant(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    found = reviewed(cluster(tmp_path, **fields))
    assert errors(found) == []
    (warning,) = warnings(found)
    assert warning.startswith(told)


def test_a_host_where_nothing_runs(tmp_path: Path) -> None:
    placed = {"host": "a", "port": 1}
    model = {"prefill": [], "decode": [], "regular": [placed], "router": {"host": "a", "port": 2}}
    hosts = {"a": {"address": "127.0.0.1"}, "b": {"address": "127.0.0.2"}}
    config = cluster(tmp_path, model=model, shell_router={"host": "a", "port": 3}, hosts=hosts)
    assert warnings(list(review(config, "a", {}))) == ["$.hosts.b: nothing runs there"]


def test_a_device_that_torch_does_not_know(tmp_path: Path) -> None:
    embedding = {"path": "builtin:all-minilm-l6-v2", "device": "gpu"}
    (told,) = errors(reviewed(cluster(tmp_path, shell_router={"embedding": embedding})))
    assert told.startswith("$.shell_router.embedding.device: 'gpu' is neither")


@pytest.mark.parametrize(
    ("pool", "least", "most", "error"), [(20_000, 30, 400, None), (500, 30, 400, True), (600, 30, 700, False)]
)
def test_pools_and_needs(tmp_path: Path, pool: int, least: int, most: int, error: bool | None) -> None:
    config = cluster(tmp_path, model={"max_total_tokens": pool})
    found = list(review_pools(config, [Need(tree=0, agent="p1", model="m", least=least, most=most)]))
    assert [remark.error for remark in found] == ([] if error is None else [error])
