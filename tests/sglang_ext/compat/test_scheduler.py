"""Beside what sessions are refused, by name; and where a decode worker wants pages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from sglang_ext import compat
from sglang_ext.compat import scheduler as described


def worker(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """A prefill worker's scheduler as SGLang's flags leave it, but for `changes`."""
    from sglang.srt.disaggregation.utils import DisaggregationMode

    parallel = SimpleNamespace(pp_size=1, num_dp_ranks=1, attn_dp_enabled=False, attn_cp_size=1, dcp_enabled=False)
    disagg = SimpleNamespace(
        disaggregation_decode_allocation_policy="early",
        enable_pd_role_switch=False,
        disaggregation_enable_kv_checksum=False,
    )
    memory = SimpleNamespace(enable_flexkv=False)
    for name, of in (("get_parallel", parallel), ("get_disagg", disagg), ("get_memory", memory)):
        for field in vars(of).keys() & changes.keys():
            setattr(of, field, changes.pop(field))
        monkeypatch.setattr(described, name, lambda of=of: of)
    kv_args = SimpleNamespace(state_types=[SimpleNamespace(value=name) for name in changes.pop("states", ())])
    queue = SimpleNamespace(kv_manager=SimpleNamespace(kv_args=kv_args))
    backend = SimpleNamespace(value=changes.pop("backend", "nixl"))
    flags = {
        "is_hybrid_swa": False, "is_hybrid_ssm": False, "enable_hierarchical_cache": False, "enable_hisparse": False,
        "enable_unified_memory": False, "enable_lmcache": False, "enable_unified_cache_external_linker": False,
    }  # fmt: skip
    return SimpleNamespace(
        disaggregation_mode=DisaggregationMode(changes.pop("role", "prefill")),
        transfer_backend=backend,
        spec_algorithm=SimpleNamespace(is_none=lambda: True),
        disagg_prefill_bootstrap_queue=queue,
        disagg_decode_prealloc_queue=queue,
        **flags | changes,
    )


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_dense_model_with_the_default_flags_has_sessions(monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    assert compat.sessions_refusal(worker(monkeypatch, role=role)) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"states": ("dsa",)}, "KV with extra state (dsa)"),
        ({"states": ("minimax_index_k", "block_scale")}, "KV with extra state (block_scale, minimax_index_k)"),
        ({"states": ("dsa",), "role": "decode"}, "KV with extra state (dsa)"),
        ({"enable_lmcache": True}, "LMCache"),
        ({"enable_flexkv": True}, "FlexKV"),
        ({"enable_unified_cache_external_linker": True}, "an external linker of the cache"),
        ({"enable_pd_role_switch": True}, "the switch of a worker's role"),
        ({"disaggregation_enable_kv_checksum": True}, "KV checksums"),
        ({"pp_size": 2}, "pipeline parallelism"),
        ({"attn_cp_size": 2}, "context parallelism"),
        ({"backend": "mooncake"}, "the transfer backend mooncake"),
    ],
)
def test_what_is_refused_is_named(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str) -> None:
    problem = compat.sessions_refusal(worker(monkeypatch, **changes))
    assert problem is not None
    assert problem.code == "incompatible"
    assert named in problem.message


def test_extra_states_are_those_of_sglang() -> None:
    """Every one of them would be asked for with the last chunk, which knows none: so all are refused, also new ones."""
    from sglang.srt.disaggregation.base.conn import StateType

    assert {state.value for state in StateType} >= {"mamba", "swa", "dsa"}


@pytest.mark.parametrize(
    ("infos", "pages"),
    [
        ({}, 0),
        ({"a": (5, False)}, 5),
        ({"a": (5, False), "b": (3, False)}, 3),
        ({"a": (5, False), "b": (0, True)}, 5),
        # Of MLA's KV each rank has all: those whose copy nobody takes are told so, and of no page.
        ({"a": (0, True)}, compat.UNBOUNDED_PAGES),
    ],
)
def test_a_rank_that_takes_nothing_sets_no_bound(infos: dict[str, tuple[int, bool]], pages: int) -> None:
    found = {name: SimpleNamespace(dst_kv_indices=[0] * n, is_dummy=dummy) for name, (n, dummy) in infos.items()}
    transfers = cast("compat.PrefillTransfers", SimpleNamespace(transfer_infos={7: found}))
    assert compat.announced_pages(transfers, 7) == pages
    assert compat.announced_pages(transfers, 8) == 0
