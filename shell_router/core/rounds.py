"""Rounds of `"mode": "paper"`: answers of a layer judged as RouteMoA's own code does (`paper`), and what that makes of
the same models in the layers after it.

A round is a layer of the pool, and a model is the same in another round by its name. Its own score is the one that it
writes as JSON, `{"score": 0.8}`, where its template asks for one, else its answer's confidence C; its peers' score is
how like its answer was to those of its round (X of `judging`), which counts from the next round on, as there peers have
read it by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from shell_router.core.judging import Judgement, Posterior, Predicted, likeness_to_others
from shell_router.core.paper import LARGE, Heard, posterior, stops_above, stretched
from shell_router.core.routing import Candidate, RoutingTerms


def judged_in_rounds(
    judgement: Judgement,
    at: float,
    likeness: tuple[float, ...] | None,
    error: str | None,
    terms: RoutingTerms,
    selves: Mapping[str, float | None],
    earlier: Iterable[Judgement],
) -> Judgement:
    """`judgement` with its verdict on all models that have answered by now, those of its own round first.

    `selves` has the scores that the round's agents gave themselves, `earlier` the judgements of the rounds before.
    """
    qualities = {each.agent: each.quality for layer in terms.layers for each in layer.candidates}
    priors = {agent: stretched(quality) for agent, quality in qualities.items()}
    alike: Mapping[str, float | None] = dict.fromkeys(judgement.agents)
    if error is None and likeness is not None:
        predicted = {agent: Predicted(priors[agent], 1.0) for agent in judgement.agents}
        alike = likeness_to_others(judgement.agents, likeness, predicted)
    heard: dict[str, list[Posterior]] = {}
    for before in earlier:
        for each in before.posteriors:
            if each.agent in before.agents:
                heard.setdefault(terms.agents[each.agent].model, []).append(each)
    large = len(models(terms)) >= LARGE
    posteriors: list[Posterior] = []
    for agent in judgement.agents:
        known = heard.pop(terms.agents[agent].model, [])
        found = Heard(
            prior=priors[agent],
            selves=(*(each.confidence for each in known), selves[agent]),
            cross=known[-1].likeness if known else None,
            now=True,
        )
        posteriors.append(_posterior(agent, found, selves[agent], alike[agent], large))
    for known in heard.values():
        last = known[-1]
        found = Heard(
            prior=priors[last.agent],
            selves=tuple(each.confidence for each in known),
            cross=last.likeness,
            now=False,
        )
        posteriors.append(_posterior(last.agent, found, last.confidence, last.likeness, large))
    return msgspec.structs.replace(
        judgement,
        answered=at,
        likeness=likeness,
        posteriors=tuple(posteriors),
        error=error,
        threshold=stops_above(len(models(terms))),
    )


def _posterior(agent: str, heard: Heard, confidence: float | None, likeness: float | None, large: bool) -> Posterior:
    return Posterior(
        agent=agent,
        predicted=heard.prior,
        confidence=confidence,
        likeness=likeness,
        quality=posterior(heard, large=large),
        left_out=False,
    )


def with_posteriors(terms: RoutingTerms, judgement: Judgement) -> RoutingTerms:
    """`terms` in which members of models that have answered are ranked by what is thought of these now."""
    found = {terms.agents[each.agent].model: each.quality for each in judgement.posteriors}

    def corrected(candidate: Candidate) -> Candidate:
        quality = found.get(terms.agents[candidate.agent].model)
        return candidate if quality is None else msgspec.structs.replace(candidate, posterior=quality)

    layers = tuple(
        msgspec.structs.replace(layer, candidates=tuple(map(corrected, layer.candidates))) for layer in terms.layers
    )
    return msgspec.structs.replace(terms, layers=layers)


def models(terms: RoutingTerms) -> frozenset[str]:
    """Of the pool."""
    return frozenset(terms.agents[each.agent].model for layer in terms.layers for each in layer.candidates)
