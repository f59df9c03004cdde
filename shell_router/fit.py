"""Whether trees fit the models they run on, told without an engine: tokenizers load, chat templates render what the
trees ask, prompts and answers have room, early exit can work.

`python -m shell_router.fit` tells the launcher, which loads no tokenizers; see `shell_router.needs`. The router itself
tells it with `--check`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec

from shell_router.config import ModelConfig, RouterConfig, load_json, load_tree
from shell_router.core.messages import Message
from shell_router.core.prompt import max_prompt_tokens
from shell_router.core.review import Remark
from shell_router.core.tree import Tree, TreeConfig, build_tree
from shell_router.errors import GraftError
from shell_router.needs import Fit, Need
from shell_router.prepare import Preparer, RunRequest
from shell_router.scores import load_scores
from shell_router.tokenizer import HubTokenizer
from shell_router.transport.capabilities import SGLANG

ROOM = 100
"""With fewer tokens left for the question a tree is remarked on."""
_NO_LIMIT = 2**40


def fit(config: RouterConfig, unseen: Collection[str] = ()) -> Fit:
    """Try the trees of `config` on its models. Trees are sound and name served models.

    The tokenizers of models in `unseen` cannot be had here: for their trees only bounds of answers are added up.
    """
    models = {model.name: model for model in config.models}
    tokenizers: dict[str, HubTokenizer] = {}
    remarks: list[Remark] = []
    for index, model in enumerate(config.models):
        if model.name not in unseen:
            try:
                tokenizers[model.name] = _whole(HubTokenizer(model.tokenizer))
            except GraftError as error:
                remarks.append(Remark(f"$.models[{index}].tokenizer: {_line(error)}", error=True))
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                # A file that is not what its readers take for granted.
                told = f"the tokenizer in {model.tokenizer} cannot be read: {error!r}"
                remarks.append(Remark(f"$.models[{index}].tokenizer: {told}", error=True))
    needs: list[Need] = []
    trees = {tree.name: tree for tree in map(load_tree, map(Path, config.trees))}
    for index, path in enumerate(config.scores):
        try:
            load_scores([path], trees, config.embedding)
        except GraftError as error:
            remarks.append(Remark(f"$.scores[{index}]: {_line(error)}", error=True))
    for index, path in enumerate(config.trees):
        written = load_json(Path(path), TreeConfig)
        tree = build_tree(written)
        if tree.models <= tokenizers.keys():
            place = f"$.trees[{index}]: {path}"
            try:
                found = tuple(_needs(index, tree, models, tokenizers, compares=config.embedding is not None))
            except GraftError as error:
                remarks.append(Remark(f"{place}: {_line(error)}", error=True))
                continue
        else:
            found = tuple(_least_needs(index, tree))
        needs += found
        for need in found:
            remarks += _remarks(f"$.trees[{index}]: {path}", written, tree, need, models[need.model].context_length)
    return Fit(remarks=tuple(remarks), needs=tuple(needs))


def _line(error: Exception) -> str:
    """Libraries write paragraphs."""
    return " ".join(str(error).split())


def _whole(tokenizer: HubTokenizer) -> HubTokenizer:
    """`tokenizer`, of which all has been read that is read late."""
    _ = tokenizer.fingerprint
    return tokenizer


def _needs(
    index: int, tree: Tree, models: Mapping[str, ModelConfig], tokenizers: Mapping[str, HubTokenizer], *, compares: bool
) -> Iterator[Need]:
    """Raises `GraftError` when the tree cannot be served."""
    mine = {name: msgspec.structs.replace(models[name], context_length=_NO_LIMIT) for name in tree.models}
    preparer = Preparer(
        trees=[tree],
        models=mine,
        tokenizers=tokenizers,
        # Other servers are asked when the router starts.
        capabilities=dict.fromkeys(mine, SGLANG),
        compares=compares,
    )
    prepared = preparer.prepare(RunRequest(tree=tree.name, conversation=(Message("user", ""),)))
    for agent in tree.agents:
        segments = prepared.segments[agent.id]
        yield Need(
            tree=index,
            agent=agent.id,
            model=agent.model,
            least=max_prompt_tokens(segments, dict.fromkeys(agent.precursors, 1)) + 1,
            most=prepared.max_prompt_tokens[agent.id] + agent.sampling.max_new_tokens,
        )


def _least_needs(index: int, tree: Tree) -> Iterator[Need]:
    """Answers alone."""
    for agent in tree.agents:
        read = sum(tree.agent(precursor).sampling.max_new_tokens for precursor in agent.precursors)
        most = read + agent.sampling.max_new_tokens
        yield Need(tree=index, agent=agent.id, model=agent.model, least=len(agent.precursors) + 1, most=most)


def _remarks(place: str, written: TreeConfig, tree: Tree, need: Need, limit: int) -> Iterator[Remark]:
    """`limit` is the context of the agent's model, tokens."""
    if need.most + ROOM <= limit:
        return
    at = f"{place}: {_longest(written, tree, need.agent)}"
    if need.most >= limit:
        yield Remark(
            f"{at}: agent {need.agent!r} may come to {need.most:,} tokens with its answer and those it reads, before "
            f"there is a question; model {need.model!r} takes {limit:,} (`context_length`), so every run would be "
            "refused",
            error=True,
        )
    else:
        yield Remark(
            f"{at}: agent {need.agent!r} leaves {limit - need.most} tokens for the question, of the {limit:,} that "
            f"model {need.model!r} takes (`context_length`)"
        )


def _longest(written: TreeConfig, tree: Tree, agent: str) -> str:
    """JSON path of the bound of the longest of `agent`'s answer and those it reads."""
    answers = [agent, *tree.agent(agent).precursors]
    longest = max(answers, key=lambda each: tree.agent(each).sampling.max_new_tokens)
    position = next(position for position, each in enumerate(written.agents) if each.id == longest)
    own = f"$.agents[{position}]" if written.agents[position].sampling is not None else "$"
    return f"{own}.sampling.max_new_tokens"


def main() -> None:
    parser = argparse.ArgumentParser(prog="shell_router.fit", description="Read a RouterConfig, write a Fit, as JSON.")
    parser.add_argument(
        "--unseen", action="append", default=[], metavar="MODEL", help="whose tokenizer is not here; repeat it"
    )
    arguments = parser.parse_args()
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=RouterConfig)
    print(f"\n{msgspec.json.encode(fit(config, arguments.unseen)).decode()}", flush=True)


if __name__ == "__main__":
    main()
