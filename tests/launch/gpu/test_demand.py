"""What workers ask for, and what in a configuration makes no sense on GPUs."""

from __future__ import annotations

import pytest

from launch.config import ConfiguredWorker, DecodeConfig, ModelConfig, PrefillConfig
from launch.gpu.demand import EMBEDDING_PATH, demands
from launch.gpu.reserve import MIB, activation_bytes, flag_value
from shell_router.config import EmbeddingConfig
from tests.launch.gpu.recorded import recorded_size


def model(name: str = "m", path: str = "Qwen/Qwen3-8B", **fields: object) -> ModelConfig:
    base: dict[str, object] = {"prefill": (PrefillConfig(),), "decode": (DecodeConfig(),)}
    return ModelConfig(name=name, path=path, device="cuda", **{**base, **fields})  # type: ignore[arg-type]


def workers(one: ModelConfig) -> list[ConfiguredWorker]:
    return list(one.workers("$.models[0]"))


def problems(one: ModelConfig) -> tuple[str, ...]:
    return demands(workers(one), None, recorded_size)[1]


def test_what_a_pair_asks_for() -> None:
    one = model(context_length=5000, decode=(DecodeConfig(tp_size=2, mem_fraction_static=0.7, flags=("--x",)),))
    (prefill, decode), wrong = demands(workers(one), None, recorded_size)
    assert wrong == ()
    assert (prefill.path, prefill.name, prefill.role) == ("$.models[0].prefill[0]", "m-prefill-0", "prefill")
    assert (prefill.tp_size, prefill.fraction, prefill.least_tokens) == (1, None, 5008), "whole pages"
    assert prefill.weight_bytes == 2 * 8_190_735_360
    assert (decode.tp_size, decode.fraction, decode.flags) == (2, 0.7, ("--x",))
    assert decode.weight_bytes * 2 == prefill.weight_bytes
    assert decode.kv_bytes_per_token * 2 == prefill.kv_bytes_per_token == 147_456


def test_a_worker_that_drafts_computes_more_in_a_step() -> None:
    for drafts, expected in ((False, [1, 1]), (True, [1, 9])):
        found, _ = demands(workers(model(drafts=drafts)), None, recorded_size)
        assert [one.step_tokens for one in found] == expected


def test_pinned_gpus_are_counted() -> None:
    (one,), _ = demands(
        workers(model(prefill=(), decode=(), regular=(DecodeConfig(gpus=(3, 1)),))), None, recorded_size
    )
    assert (one.role, one.tp_size, one.pinned, one.cards_field) == ("regular", 2, (1, 3), "$.models[0].regular[0].gpus")


def test_cpu_workers_ask_for_nothing() -> None:
    one = ModelConfig(name="m", path="no/where", device="cpu", regular=(DecodeConfig(),))
    assert demands(workers(one), EmbeddingConfig(path="no/where"), recorded_size) == ((), ())


def test_the_embedding_model_on_a_gpu() -> None:
    embedding = EmbeddingConfig(path="Qwen/Qwen3-Embedding-0.6B", device="cuda")
    (one,), _ = demands((), embedding, recorded_size)
    assert (one.path, one.role, one.pinned, one.pool_tokens) == (EMBEDDING_PATH, "embedding", (), 0)
    assert one.weight_bytes == 2 * 595_776_512
    (pinned,), _ = demands((), EmbeddingConfig(path="Qwen/Qwen3-Embedding-0.6B", device="cuda:3"), recorded_size)
    assert pinned.pinned == (3,)


@pytest.mark.parametrize(("worker", "field"), [({"tp_size": 3}, "tp_size"), ({"gpus": (0, 1, 2)}, "gpus")])
def test_heads_that_cannot_be_split(worker: dict[str, object], field: str) -> None:
    (problem,) = problems(model(prefill=(PrefillConfig(**worker),)))  # type: ignore[arg-type]
    assert problem == (
        f"$.models[0].prefill[0].{field}: m cannot be split over 3 GPUs: it has 32 attention heads and 8 KV heads, "
        "which 3 does not divide"
    )


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (("--mem-fraction-static", "0.5"), "mem_fraction_static"),
        (("--max-total-tokens=9",), "max_total_tokens"),
        (("--tp", "2"), "tp_size"),
    ],
)
def test_flags_that_would_overrule_the_plan(flags: tuple[str, ...], field: str) -> None:
    (problem,) = problems(model(flags=flags))
    assert problem.startswith("$.models[0].flags: ")
    assert problem.endswith(f"would overrule the plan; say it with `{field}`")
    (problem,) = problems(model(decode=(DecodeConfig(flags=flags),)))
    assert problem.startswith("$.models[0].decode[0].flags: ")


def test_the_reserve_is_that_of_sglang() -> None:
    """As in `arg_groups/memory_hook.py` of SGLang 0.5.23, without its floor."""
    h100 = 81559 * MIB
    assert activation_bytes(h100, "prefill", 1) == (512 + 8192 * 1.5 + 128 + 512) * MIB
    assert activation_bytes(h100, "decode", 1) == (512 + 2048 * 1.5 + 128 + 256 * 2) * MIB
    assert activation_bytes(h100, "decode", 4) == (512 + 2048 * 1.5 + 512 + 512 * 2) * MIB
    assert activation_bytes(24564 * MIB, "regular", 1) == (512 + 4096 * 1.5 + 128 + 48 * 2 + 512) * MIB
    # A step with drafts computes several tokens of each request.
    assert activation_bytes(h100, "decode", 1, step_tokens=9) == (512 + 256 * 9 * 1.5 + 128 + 256 * 2) * MIB
    smaller = activation_bytes(h100, "prefill", 1, ("--chunked-prefill-size", "4096"))
    assert smaller == activation_bytes(h100, "prefill", 1) - 4096 * 1.5 * MIB
    assert activation_bytes(h100, "prefill", 1, ("--chunked-prefill-size", "-1")) > smaller


def test_the_last_flag_counts() -> None:
    assert flag_value(("--a", "1", "--a=2", "--b"), "--a") == "2"
    assert flag_value(("--a", "1"), "--b") is None
    assert flag_value(("--a",), "--a") is None
