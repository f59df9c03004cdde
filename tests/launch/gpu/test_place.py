"""The search for a placement: what is allowed, what is best, and that it finds it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence

import pytest

from launch.gpu.cards import Card, CardTable, Link
from launch.gpu.demand import Demand
from launch.gpu.place import Placement, PlacementError, place
from launch.gpu.reserve import CONTEXT_BYTES, MIB
from tests.launch.gpu.recorded import TABLES, cards, demand


def pair(model: str, gigabytes: float, decode: int = 1, prefill: int = 1, **changes: object) -> list[Demand]:
    workers = [demand(model, "prefill", gigabytes, n, **changes) for n in range(prefill)]
    return workers + [demand(model, "decode", gigabytes, n, **changes) for n in range(decode)]


def placed(demands: Sequence[Demand], table: str | CardTable) -> dict[str, Placement]:
    found = place(demands, cards(table) if isinstance(table, str) else table)
    return {one.name: one for one in found}


def refused(demands: Sequence[Demand], table: str | CardTable) -> list[str]:
    with pytest.raises(PlacementError) as caught:
        placed(demands, table)
    return list(caught.value.problems)


def check(demands: Sequence[Demand], found: Mapping[str, Placement], table: CardTable) -> None:
    """What every placement must hold."""
    by_index = {card.index: card for card in table.cards}
    used = dict.fromkeys(by_index, 0)
    for one in demands:
        result = found[one.name]
        assert len(set(result.cards)) == one.tp_size
        assert not one.pinned or result.cards == one.pinned
        assert result.kv_tokens >= one.pool_tokens
        assert result.shared == any(
            set(result.cards) & set(other.cards) for name, other in found.items() if name != one.name
        )
        assert result.shared <= (result.max_total_tokens is not None or one.role == "embedding")
        for index in result.cards:
            used[index] += result.weight_bytes + result.kv_tokens * result.kv_bytes_per_token + result.overhead_bytes
    for index, card in by_index.items():
        # SGLang's fraction has four digits here.
        assert used[index] <= card.free_bytes * 1.0002, index


@pytest.mark.parametrize("name", [path.stem for path in TABLES])
def test_a_pair_of_8b_on_every_machine(name: str) -> None:
    table = cards(name)
    demands = pair("m", 16.4)
    if max((card.free_bytes for card in table.cards), default=0) < 26e9:
        assert refused(demands, table)
        return
    found = placed(demands, table)
    check(demands, found, table)
    roomy = [card for card in table.cards if card.free_bytes > 40e9]
    assert found["m-prefill-0"].shared == (len(roomy) == 1)


def test_no_worker_no_placement() -> None:
    assert place([], cards("none")) == ()


def test_each_worker_gets_a_card_of_its_own_while_there_are_enough() -> None:
    demands = [*pair("a", 9), *pair("b", 17), *pair("c", 60)]
    found = placed(demands, "6x80gb")
    assert sorted(one.cards for one in found.values()) == [(card,) for card in range(6)]
    assert not any(one.shared or one.max_total_tokens for one in found.values())


def test_a_pair_goes_to_linked_cards() -> None:
    found = placed([*pair("a", 9), *pair("b", 17), *pair("c", 25)], "8x40gb_pairs")
    linked = [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    for model in "abc":
        assert {found[f"{model}-{role}-0"].cards[0] for role in ("prefill", "decode")} in linked


def test_one_prefill_worker_near_several_decode_workers() -> None:
    table = cards("8x40gb_pairs")
    found = placed(pair("a", 9, decode=3), table)
    (home,) = {table.cards[one.cards[0]].numa_node for one in found.values()}
    assert home == 0


def test_tensor_parallel_cards_are_linked() -> None:
    found = placed([*pair("a", 60, tp_size=2), *pair("b", 9)], "8x40gb_pairs")
    linked = [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert found["a-prefill-0"].cards in linked
    assert found["a-decode-0"].cards in linked
    assert (found["b-prefill-0"].cards + found["b-decode-0"].cards) in linked
    assert found["a-prefill-0"].flags[:2] == ("--tp-size", "2")
    assert found["a-prefill-0"].env == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, found["a-prefill-0"].cards)),
    }


def test_tensor_parallel_cards_have_like_memory() -> None:
    found = placed([demand("a", "regular", 40, tp_size=2)], "mixed")
    assert found["a-regular-0"].cards == (1, 3)
    (problem,) = refused([demand("a", "regular", 40, tp_size=4)], "mixed")
    assert problem.startswith("$.a.regular[0].tp_size: the free memory of no 4 GPUs that have room ")
    assert problem.endswith(
        "is within 10 %, which SGLang demands of tensor parallel workers: "
        "GPU 0 25.2 GB, GPU 1 85.0 GB, GPU 2 25.2 GB, GPU 3 85.0 GB"
    )


def test_the_large_model_gets_the_large_cards() -> None:
    found = placed([*pair("small", 5), *pair("large", 30)], "mixed")
    assert {found[f"large-{role}-0"].cards for role in ("prefill", "decode")} == {(1,), (3,)}
    assert {found[f"small-{role}-0"].cards for role in ("prefill", "decode")} == {(0,), (2,)}


def test_workers_that_must_share_split_what_is_left_evenly() -> None:
    demands = [*pair("a", 9), *pair("b", 17)]
    table = cards("1x141gb")
    found = placed(demands, table)
    check(demands, found, table)
    tokens = {one.kv_tokens for one in found.values()}
    assert len(tokens) == 1
    for one in found.values():
        assert one.max_total_tokens == one.kv_tokens
        assert one.fraction is not None
        # However late it measures, its own activations are all that it must leave.
        assert 0.95 < one.fraction < 1
        assert one.flags == (
            *("--max-total-tokens", str(one.kv_tokens)), *("--mem-fraction-static", str(one.fraction)),
        )  # fmt: skip
    assert sum(one.share for one in found.values()) < 0.8


def test_sglang_finds_the_pool_it_is_told_in_every_order_of_starting() -> None:
    """Its rule: free now - (1 - fraction) * free when it started, and no more than the tokens."""
    table = cards("1x141gb")
    found = placed([*pair("a", 9), *pair("b", 17)], table)
    (card,) = table.cards
    for last in found.values():
        others = sum(
            one.weight_bytes + one.kv_tokens * one.kv_bytes_per_token + one.overhead_bytes
            for one in found.values()
            if one is not last
        )
        for started_with in (card.free_bytes - CONTEXT_BYTES, card.free_bytes - CONTEXT_BYTES - others):
            now = card.free_bytes - CONTEXT_BYTES - others - last.weight_bytes
            assert last.fraction is not None
            pool = now - (1 - last.fraction) * started_with
            assert pool >= last.kv_tokens * last.kv_bytes_per_token


def test_the_fraction_on_a_card_of_its_own_leaves_the_activations() -> None:
    table = cards("2x80gb_taken")
    found = placed(
        [demand("a", "regular", 2, pinned=(1,), least_tokens=1024, flags=("--chunked-prefill-size", "2048"))], table
    )
    (one,) = found.values()
    start = table.cards[1].free_bytes - CONTEXT_BYTES
    assert one.fraction is not None
    assert (1 - one.fraction) * start == pytest.approx(one.overhead_bytes - CONTEXT_BYTES, rel=0.001)
    assert one.kv_tokens == pytest.approx((one.fraction * start - one.weight_bytes) / one.kv_bytes_per_token, abs=64)


def test_a_card_of_its_own_with_memory_to_spare_leaves_what_sglang_would() -> None:
    table = cards("2x80gb")
    roomy = placed(pair("a", 9), table)["a-decode-0"]
    assert roomy.overhead_bytes == CONTEXT_BYTES + 10 * 1024 * MIB
    (tight,) = placed([demand("a", "decode", 75)], table).values()
    needed = demand("a", "decode", 75).overhead_bytes(table.cards[0].total_bytes)
    assert needed < tight.overhead_bytes < needed + 1e9, "a quarter of what is left at most"
    assert tight.kv_tokens > 2 * 8192


def test_what_the_configuration_says_of_memory_is_kept() -> None:
    table = cards("2x80gb")
    fixed = placed(pair("a", 9, tokens=50_000), table)["a-prefill-0"]
    assert (fixed.kv_tokens, fixed.max_total_tokens) == (50_000, 50_000)
    share = placed(pair("a", 9, fraction=0.5), table)["a-decode-0"]
    assert (share.fraction, share.max_total_tokens) == (0.5, None)
    assert share.kv_tokens == pytest.approx((0.5 * table.cards[0].free_bytes - 9e9) / 147_456, rel=0.02)
    found = placed([*pair("a", 9, fraction=0.12), *pair("b", 9, fraction=0.2)], "1x141gb")
    for name, fraction in (("a-prefill-0", 0.12), ("b-decode-0", 0.2)):
        assert found[name].kv_tokens == pytest.approx((fraction * 150.2e9 - 9e9) / 147_456, rel=0.02)
        assert found[name].max_total_tokens == found[name].kv_tokens


def test_pinned_workers_stay_and_the_others_make_room() -> None:
    found = placed([*pair("a", 9), demand("b", "regular", 17, pinned=(0,))], "2x80gb")
    assert found["b-regular-0"].cards == (0,)
    # One of the pair must share; with its peer it has more room than with the larger model.
    assert found["a-prefill-0"].cards == found["a-decode-0"].cards == (1,)


def test_the_embedding_model_gets_a_spare_card_and_else_shares_the_roomiest() -> None:
    embedding = demand("embedding", "embedding", 8, kv_bytes_per_token=0, least_tokens=0, tokens=0)
    found = placed([*pair("a", 9), *pair("b", 60), embedding], "6x80gb")
    assert not found["embedding-embedding-0"].shared
    assert found["embedding-embedding-0"].flags == ()
    found = placed([*pair("a", 9), *pair("b", 17), *pair("c", 60), embedding], "6x80gb")
    shared = [name for name, one in found.items() if one.shared]
    assert shared == ["a-decode-0", "embedding-embedding-0"]


def test_tensor_parallel_workers_on_shared_cards_may_find_them_unbalanced() -> None:
    found = placed([demand("a", "regular", 40, tp_size=2), demand("b", "regular", 9)], "2x80gb")
    assert found["a-regular-0"].env["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"] == "0"
    assert "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK" not in found["b-regular-0"].env


def test_without_cards() -> None:
    assert refused(pair("a", 9), "none") == ["$.a.prefill[0]: device `cuda` needs a GPU; the NVIDIA driver shows none"]


def test_more_cards_than_there_are() -> None:
    assert refused(
        [demand("a", "regular", 9, tp_size=4), demand("b", "decode", 9, pinned=(1, 5), tp_size=2)], "2x80gb"
    ) == [
        "$.a.regular[0].tp_size: 4 GPUs are wanted; the NVIDIA driver shows 2",
        "$.b.decode[0].gpus: there is no GPU 5; the NVIDIA driver shows 2: 0, 1",
    ]


def test_a_model_that_fits_nowhere() -> None:
    (problem,) = refused([demand("a", "decode", 30)], "1x24gb")
    assert problem == (
        "$.a.decode[0]: a-decode-0 needs 35.9 GB on a GPU (30.0 weights, 1.2 KV for 8192 tokens, 4.7 activations, CUDA "
        "graphs and context); GPU 0 (NVIDIA GeForce RTX 4090) has 25.2 GB free of 25.8 GB"
    )


def test_a_pinned_card_that_is_taken() -> None:
    (problem,) = refused(pair("a", 9, pinned=(1,))[1:], "2x80gb_taken")
    assert problem.startswith("$.a.decode[0].gpus: a-decode-0 needs 15.3 GB on a GPU (9.0 weights, ")
    assert problem.endswith("has 12.6 GB free of 85.5 GB (process 4242 holds 72.4 GB)")


def test_a_fraction_that_is_too_large_for_its_card() -> None:
    (problem,) = refused([demand("a", "regular", 9, fraction=0.98)], "2x80gb")
    assert problem.startswith("$.a.regular[0].mem_fraction_static: a-regular-0 needs ")


def test_workers_that_fit_alone_and_not_together() -> None:
    (problem,) = refused([*pair("a", 60), *pair("b", 30)], "2x80gb")
    assert problem.startswith("$.b.prefill[0]: b-prefill-0 does not fit beside the others: it needs ")
    assert "left: GPU 0 " in problem
    (problem,) = refused([*pair("a", 60, pinned=(0,))], "2x80gb")
    assert problem.startswith("$.a.decode[0].gpus: a-decode-0 does not fit beside the others")


def test_a_search_without_an_end_is_given_up() -> None:
    """Two of these fit on a card, three do not, and there are more than twice as many as cards: no two are alike."""
    workers = [each for n in range(9) for each in pair(f"m{n}", 55 + n / 100)]
    (problem,) = refused(workers, "8x141gb")
    assert " does not fit beside the others: it needs " in problem


def test_an_embedding_model_on_a_card_that_is_not_there() -> None:
    (problem,) = refused([demand("e", "embedding", 1, pinned=(9,))], "2x80gb")
    assert problem.startswith("$.e.embedding[0].device: there is no GPU 9")


def random_case(seed: int) -> tuple[list[Demand], CardTable]:
    """Up to four cards and five workers."""
    draw = random.Random(seed)
    count = draw.randint(2, 4)
    table = CardTable(
        cards=tuple(
            Card(index=i, name="x", uuid=f"GPU-{i}", total_bytes=size, free_bytes=size)
            for i, size in enumerate(draw.choice((48, 80, 80)) * 10**9 for _ in range(count))
        ),
        links=tuple(
            Link(between=pair, kind=draw.choice(("nvlink", "numa", "system")))
            for pair in itertools.combinations(range(count), 2)
        ),
    )
    demands = pair("a", draw.choice((9, 20)), decode=draw.randint(1, 2))
    if draw.random() < 0.5:
        demands.append(demand("b", "regular", 30, tp_size=draw.randint(1, 2)))
    if draw.random() < 0.5:
        demands.append(demand("c", "regular", 9))
    return demands, table


def cost_of(demands: Sequence[Demand], table: CardTable, chosen: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The cost of a placement by the words of the module's text, computed from nothing but its result; None when it is
    not allowed."""
    by_index = {card.index: card for card in table.cards}
    rooms = []
    crowding = 0
    for index, card in by_index.items():
        here = [one for one, at in zip(demands, chosen, strict=True) if index in at]
        crowding += len(here) * (len(here) - 1) // 2
        least = [one.weight_bytes + one.pool_tokens * one.kv_bytes_per_token for one in here]
        spare = card.free_bytes - sum(least) - sum(one.overhead_bytes(card.total_bytes) for one in here)
        if spare < 0:
            return None
        rooms += [(one.least_tokens + spare // len(here) // one.kv_bytes_per_token) / one.least_tokens for one in here]
    for at in chosen:
        free = [by_index[index].free_bytes for index in at]
        if min(free) < 0.9 * max(free):
            return None
    within = sum(max(table.distance(a, b) for a in at for b in at) for at in chosen)
    between = sum(
        max(table.distance(a, b) for a in at for b in other)
        for one, at in zip(demands, chosen, strict=True)
        for peer, other in zip(demands, chosen, strict=True)
        if (one.role, peer.role) == ("prefill", "decode") and one.model == peer.model
    )
    return crowding, within, -min(6, int(math.log2(min(rooms)))), between


@pytest.mark.parametrize("seed", range(40))
def test_nothing_better_exists(seed: int) -> None:
    demands, table = random_case(seed)
    every = [list(itertools.combinations(range(len(table.cards)), one.tp_size)) for one in demands]
    costs = [cost for chosen in itertools.product(*every) if (cost := cost_of(demands, table, chosen)) is not None]
    if not costs:
        assert refused(demands, table)
        return
    found = place(demands, table)
    assert cost_of(demands, table, [one.cards for one in found]) == min(costs)
    check(demands, {one.name: one for one in found}, table)


def test_a_dozen_workers_on_eight_cards() -> None:
    for name in ("8x141gb", "8x40gb_pairs", "8x48gb_pcie"):
        demands = [worker for model in range(6) for worker in pair(f"m{model}", 2 + model)]
        table = cards(name)
        found = placed(demands, table)
        check(demands, found, table)
        if name == "8x141gb":
            assert placed(demands, table) == found, "a plan is always the same"
        on = [sum(card in one.cards for one in found.values()) for card in range(8)]
        assert sorted(on) == [1, 1, 1, 1, 2, 2, 2, 2]
        for model in range(6):
            ends = found[f"m{model}-prefill-0"].cards + found[f"m{model}-decode-0"].cards
            assert table.distance(*ends) <= 2, "each pair on one card or on linked ones"
