"""An optimum as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from launch.gpu.demand import EMBEDDING_PATH
from launch.gpu.place import Placement
from launch.gpu.program.optimum import Optimum
from launch.gpu.program.problem import Balance
from launch.gpu.table import lined_up

_ESTIMATED = "estimated (roofline: published FLOPS and bandwidth; no real worker is as fast)"
_UNIT = {"makespan": "s", "cost": "card-seconds"}


def optimum_text(optimum: Optimum) -> str:
    """What was assumed, the load of each card before and after, who does what, and how sure that is."""
    return "\n\n".join([_assumed(optimum), _loads(optimum), _shares(optimum), _verdict(optimum)])


def room_remarks(optimum: Optimum, placements: Iterable[Placement]) -> Iterator[str]:
    """A line for each worker whose KV pool holds fewer requests than it is taken to decode side by side."""
    batch = optimum.wish.batch
    for one in placements:
        mine = [asked for asked in optimum.classes if asked.model == one.model]
        if one.role not in ("decode", "regular") or not mine:
            continue
        steps = sum(asked.requests * asked.answer_tokens for asked in mine)
        tokens = sum(
            asked.requests * asked.answer_tokens * (asked.prompt_tokens + asked.answer_tokens) for asked in mine
        )
        holds = int(one.kv_tokens * steps / tokens)
        if holds < batch:
            yield (
                f"{one.path}: the KV pool of {one.name} ({one.kv_tokens:,} tokens) holds about {holds} of its "
                f"requests, and --batch counts on {batch}: its seconds are too low"
            )


def optimum_document(optimum: Optimum) -> Mapping[str, object]:
    """The same as JSON."""
    problem, objective = optimum.problem, optimum.wish.objective
    return {
        "objective": objective,
        "costs": "estimated" if optimum.wish.profile is None else str(optimum.wish.profile),
        "batch": optimum.wish.batch,
        "question_tokens": optimum.wish.question_tokens,
        "planned": {
            "value": optimum.present.value(problem, objective),
            "loads_s": optimum.present.loads,
        },
        "optimised": {
            "value": optimum.best.value(problem, objective),
            "loads_s": optimum.best.loads,
            "workers": [
                {"kind": problem.options[number].kind, "cards": problem.options[number].cards}
                for number in optimum.best.chosen
            ],
            "shares": [
                {"class": problem.tasks[task].name, "kind": problem.tasks[task].kind, "share": share}
                | {"cards": problem.options[number].cards}
                for (task, number), share in optimum.best.shares.items()
            ],
        },
        "better": optimum.found is not None,
        "proven": optimum.proven,
        "gap": optimum.gap,
        "seconds": optimum.seconds,
        "time_limit_s": optimum.wish.time_limit_s,
    }


def _assumed(optimum: Optimum) -> str:
    wish = optimum.wish
    costs = _ESTIMATED if wish.profile is None else f"measured ({wish.profile})"
    rows = [("class", "model", "requests a run", "prompt tokens", "answer tokens")]
    for one in optimum.classes:
        rows.append((one.name, one.model, f"{one.requests:g}", f"{one.prompt_tokens:,}", f"{one.answer_tokens:,}"))
    return (
        f"seconds {costs}\n{wish.batch} answers are decoded side by side; a question has {wish.question_tokens} "
        f"tokens, an answer all that its agent may write\n\n{lined_up(rows, (2, 3, 4))}"
    )


def _loads(optimum: Optimum) -> str:
    """Seconds that a run takes of each card, by the plan without a program and with it, and what that comes to."""
    present, best = optimum.present, optimum.best
    rows = [("GPU", "s a run", "planned workers", "s a run", "optimised workers")]
    for card in optimum.problem.free:
        rows.append(
            (
                str(card),
                f"{present.loads[card]:.2f}",
                _workers(optimum, present, card),
                f"{best.loads[card]:.2f}",
                _workers(optimum, best, card),
            )
        )
    before, after = (one.value(optimum.problem, optimum.wish.objective) for one in (present, best))
    unit = _UNIT[optimum.wish.objective]
    ratio = f", {before / after:.2f} times less" if after and before / after > 1.005 else ""
    told = f"{optimum.wish.objective}: {before:.2f} {unit} a run as planned, {after:.2f} optimised{ratio}"
    return f"{lined_up(rows, (0, 1, 3))}\n{told}"


def _shares(optimum: Optimum) -> str:
    """One row where all classes of a kind are shared out alike, else one for each."""
    problem, best = optimum.problem, optimum.best
    rows = [("workers", "GPU: share of the requests", "of the class")]
    for kind in dict.fromkeys(task.kind for task in problem.tasks):
        told: dict[str, list[str]] = {}
        for t, task in enumerate(problem.tasks):
            if task.kind == kind:
                told.setdefault(_told(optimum, best, t), []).append(task.name)
        rows += [(kind, shares, "all" if len(told) == 1 else "; ".join(names)) for shares, names in told.items()]
    return lined_up(rows, ())


def _told(optimum: Optimum, one: Balance, task: int) -> str:
    options = optimum.problem.options
    where = {options[number].cards: share for (t, number), share in one.shares.items() if t == task}
    return ", ".join(f"{'+'.join(map(str, cards))}: {share:.0%}" for cards, share in sorted(where.items()))


def _verdict(optimum: Optimum) -> str:
    wish = optimum.wish
    took = f"{optimum.seconds:.1f} s of {wish.time_limit_s:g} s"
    sure = "nothing is better" if optimum.proven else "the time was over before it was proven that nothing is better"
    if optimum.found is None:
        sure = f"the plan stays: {sure}"
    return f"HiGHS: {sure} (gap {optimum.gap:.2%}); {took}"


def _workers(optimum: Optimum, one: Balance, card: int) -> str:
    """Those on a card: `4b p, 8b d` would be a prefill worker of one model and a decode worker of another."""
    on_card = [optimum.places[number] for number in one.chosen if card in optimum.places[number].cards]
    names = (
        place.copied.model if place.copied.path == EMBEDDING_PATH else f"{place.copied.model} {place.copied.role}"
        for place in on_card
    )
    return ", ".join(names) or "-"
