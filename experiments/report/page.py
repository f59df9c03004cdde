"""A report for people: which tables and pictures, in which words."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence

from experiments.kernel.environment import Environment
from experiments.kernel.statistics import FEW, Estimate
from experiments.kernel.tables import NONE, count, interval, whole
from experiments.load.compare import Over, SettingNumbers
from experiments.report import plots
from experiments.report.content import LoadCurve, ReportDocument, RunReport
from experiments.report.document import Block, Heading, Paragraph, Picture, Table
from experiments.report.numbers import OUTCOMES, timeline_runs
from experiments.report.source import RunSource
from experiments.settings.aggregate import Comparison
from experiments.settings.rows import accuracy, difference, measures, needed, points, ratio, seconds, setting_rows

_LOAD_RATIOS = (
    ("runs/s", "trees_per_s"),
    ("goodput", "goodput_share"),
    ("first token p50", "ttft_s_p50"),
    ("first token p99", "ttft_s_p99"),
    ("latency p50", "latency_s_p50"),
    ("latency p99", "latency_s_p99"),
)
_SETTINGS_NOTE = (
    "Medians, in round brackets the smallest and the largest; square brackets are 95 % intervals over questions: of "
    "accuracy by Wilson, of the mean latency by BCa bootstrap. Times are what the client saw, tokens those of all "
    "agents. Warm-ups and recordings are in no number; failed runs are counted, are not right, and are in no time."
)
_PAIRS_NOTE = (
    "Same question and same seed in both settings. A ratio is the geometric mean over questions of setting / baseline, "
    "a difference the mean of setting - baseline, with 95 % BCa bootstrap intervals over questions; below 1 and below "
    "0 the setting is faster. Questions for one point: with so many a true difference of one point of accuracy is "
    "found with 80 % chance, at the variance seen here. Each interval is for its own comparison alone."
)
_FEW_NOTE = f"Of fewer than {FEW} questions bootstrap intervals are too narrow: take them for ranges."
_WATERFALL_NOTE = (
    "Medians by layer of the agent for whom the run waited: from the agent that gave the answer back to a proposer, "
    "always to the precursor that ended last. Hidden prefill is part of the wait: in the picture at its end, in the "
    "timeline where it was. Medians need not add up."
)


def make_page(document: ReportDocument, sources: Sequence[RunSource]) -> list[Block]:
    """All blocks; `sources` are those of `document.runs`."""
    labels = [*(report.label for report in document.runs), *(load.label for load in document.loads)]
    blocks: list[Block] = [Heading(1, f"Report: {', '.join(labels)}")]
    if document.differences is not None:
        blocks += _side_by_side(document)
    for report, source in zip(document.runs, sources, strict=True):
        blocks += _run(report, source)
    for load in document.loads:
        blocks += _load(load)
    return blocks


def _side_by_side(document: ReportDocument) -> Iterator[Block]:
    assert document.differences is not None
    names = document.differences.names
    yield Heading(2, "Side by side")
    differ = f"They differ in {_and(names)}." if names else "Machine, software, commit and cfg are the same."
    yield Paragraph(
        f"These folders were measured apart, at different times. {differ} What follows is no paired comparison: "
        "a difference between two rows of different folders may come from any of this. Pairs are compared within each "
        "folder, below.",
        note=True,
    )
    places = [["folder", "cfg", "machine", "commit", "questions", "failed runs", "made"]]
    for report in document.runs:
        machines = _each(_machine(session.environment) for session in report.sessions)
        commits = _each(_commit(session.environment) for session in report.sessions)
        places.append(
            [
                report.label,
                report.config.name,
                machines,
                commits,
                report.origin.part(len(report.question_ids)),
                f"{report.counts.failed} of {report.counts.made}",
                _dates(report),
            ]
        )
    yield Table(places)
    rows = [
        ["setting", "folder", "runs (failed)", "end to end", "mean", "first token", "accuracy, %", "tokens in / out"]
    ]
    for setting in dict.fromkeys(each.setting for report in document.runs for each in report.settings):
        for report in document.runs:
            for each in report.settings:
                if each.setting == setting:
                    rows.append(
                        [
                            setting,
                            report.label,
                            f"{each.runs} ({each.failed})",
                            seconds(each.latency_s),
                            _mean(report.mean_latency_s[setting]),
                            seconds(each.ttft_s),
                            accuracy(each.accuracy),
                            f"{count(each.prompt_tokens)} / {count(each.completion_tokens)}",
                        ]
                    )
    yield Table(rows)
    figure = plots.accuracy_latency(document.runs)
    if figure is not None:
        caption = "Accuracy against mean latency, all folders, with 95 % intervals"
        yield Picture("accuracy", plots.to_svg(figure), caption)


def _run(report: RunReport, source: RunSource) -> Iterator[Block]:
    yield Heading(2, report.label)
    yield Heading(3, "What was run")
    yield Table(_facts(report))
    if report.interrupted:
        missing = report.counts.planned - report.counts.made
        yield Paragraph(f"Interrupted: {missing} of {report.counts.planned} planned runs were not made.", note=True)
    if not report.caches_flushed:
        yield Paragraph("Not every run began with empty caches on the workers.", note=True)
    if report.failures:
        yield Table([["failed run", "id", "reason"], *([f.name, f.run_id or NONE, f.reason] for f in report.failures)])
    yield Heading(3, "Settings")
    yield Table(_settings(report))
    yield Paragraph(_SETTINGS_NOTE)
    figure = plots.accuracy_latency([report])
    if figure is not None:
        caption = f"{report.label}: accuracy against mean latency, with 95 % intervals"
        yield Picture(f"{report.label}-accuracy", plots.to_svg(figure), caption)
    if report.comparisons:
        yield Heading(3, "Paired comparisons")
        yield Table(_comparisons(report.comparisons))
        for comparison in report.comparisons:
            if comparison.incomplete:
                yield Paragraph(
                    f"Incomplete pairs of {comparison.setting} / {comparison.baseline}: "
                    f"{', '.join(comparison.incomplete)}."
                )
        yield Paragraph(_PAIRS_NOTE)
        if any(each.latency is not None and each.latency.difference.n < FEW for each in report.comparisons):
            yield Paragraph(_FEW_NOTE, note=True)
    yield from _times(report, source)
    yield from _exits(report)


def _times(report: RunReport, source: RunSource) -> Iterator[Block]:
    rows = [
        ["setting", "layer", "waiting for precursors", "of it, hidden prefill", "exposed prefill", "decode", "runs"]
    ]
    for each in report.waterfalls:
        for layer in each.layers:
            times = (layer.waiting_s, layer.hidden_s, layer.exposed_s, layer.decode_s)
            rows.append([each.setting, str(layer.layer), *map(seconds, times), str(layer.waiting_s.n)])
    if len(rows) == 1:
        return
    yield Heading(3, "Where the time goes")
    yield Table(rows)
    yield Paragraph(_WATERFALL_NOTE)
    figure = plots.waterfalls(report.waterfalls)
    if figure is not None:
        caption = f"{report.label}: where the time goes, by layer"
        yield Picture(f"{report.label}-waterfall", plots.to_svg(figure), caption)
    shown = timeline_runs(report.config, source.summary.results)
    if shown:
        first, *others = (run.step for run in shown)
        caption = f"{report.label}: {first.question.id}/{first.repeat}, the median run of {first.setting}"
        if others:
            caption += f", and the same question and seed in {_and([step.setting for step in others])}"
        yield Picture(f"{report.label}-timeline", plots.to_svg(plots.timeline(shown)), caption)


def _exits(report: RunReport) -> Iterator[Block]:
    yield Heading(3, "Early exits")
    if not any(each.checks for each in report.checks):
        yield Paragraph("No check was made in a measured run.")
    else:
        rows = [
            [
                "setting",
                "checks",
                *(each.replace("_", " ") for each in OUTCOMES),
                "runs with an exit",
                "Q: median (range)",
                "checks with Q",
            ]
        ]
        for each, setting in zip(report.checks, report.settings, strict=True):
            q = each.quality
            rows.append(
                [
                    each.setting,
                    str(each.checks),
                    *(str(each.outcomes[outcome]) for outcome in OUTCOMES),
                    f"{setting.exited} of {setting.runs - setting.failed}",
                    NONE if q is None else f"{q.median:.3f} ({q.min:.3f} - {q.max:.3f})",
                    str(len(each.qualities)),
                ]
            )
        yield Table(rows)
        figure = plots.qualities(report.checks)
        if figure is not None:
            caption = f"{report.label}: Q of every check, by what became of it"
            yield Picture(f"{report.label}-exits", plots.to_svg(figure), caption)
    head = ["setting", "model", "tokens generated", "tokens saved", "agents", "cancelled", "skipped"]
    rows = [[*head, "of agents, %"]]
    for setting in report.settings:
        for model in setting.models:
            counts = (model.completion_tokens, model.tokens_saved, model.agents, model.cancelled, model.skipped)
            needless = f"{100 * (model.cancelled + model.skipped) / model.agents:.1f}"
            rows.append([setting.setting, model.model, *(f"{count:,}" for count in counts), needless])
    if len(rows) > 1:
        yield Table(rows)
        yield Paragraph(
            "Saved: tokens that cancelled and skipped answers might still have had, by their limits. Cancelled: while "
            "it answered; skipped: before it began. The last column is both together."
        )


def _load(load: LoadCurve) -> Iterator[Block]:
    yield Heading(2, f"{load.label}: load")
    facts = [
        ["", load.label],
        ["tree", load.tree],
        ["deadline of goodput", f"{load.deadline_s:g} s"],
        ["blocks", f"{load.warmup_s:g} s warm-up that no number counts, {load.duration_s:g} s measured"],
        ["blocks left out as invalid", str(load.invalid)],
        ["foreign requests", _foreign(load)],
        ["seed", str(load.seed)],
        ["made", NONE if load.started is None or load.ended is None else _span([load.started], load.ended)],
        ["machine", _each(_machine(session.environment) for session in load.sessions)],
        ["commit", _each(_commit(session.environment) for session in load.sessions)],
        ["software", _each(_software(session.environment) for session in load.sessions)],
    ]
    yield Table(facts)
    if not load.ok:
        yield Paragraph("The test was interrupted, or blocks of it are invalid and in no number.", note=True)
    head = ["setting", "rate", "blocks", "offered", "done", "runs/s", "within deadline, %"]
    rows = [[*head, "first token p50", "first token p99", "latency p50", "latency p99"]]
    rows += [_load_row(each) for each in load.settings]
    yield Table(rows)
    yield Paragraph(
        "Medians over the valid blocks, in round brackets the smallest and the largest. Times count from the scheduled "
        "time. Runs that failed are later than any other: a percentile that falls on them reads failed."
    )
    if load.comparisons:
        rows = [["setting / first setting", "rate", "pairs", *(name for name, _ in _LOAD_RATIOS)]]
        for each in load.comparisons:
            ratios = [each.ratios.get(key) for _, key in _LOAD_RATIOS]
            pairs = max((ratio.n for ratio in ratios if ratio is not None), default=0)
            name = f"{each.setting} / {each.against}"
            rows.append([name, _rate(each.rate), str(pairs), *map(_load_ratio, ratios)])
        yield Table(rows)
        yield Paragraph(
            "Geometric means over pairs of blocks with the same arrivals, questions and seeds, in square brackets 95 % "
            "bootstrap intervals over these pairs; of few pairs they are little more than ranges. For runs and goodput "
            "more than 1 is better, for times less."
        )
    figure = plots.load_curve(load)
    if figure is not None:
        caption = f"{load.label}: latency and goodput against the offered rate"
        yield Picture(f"{load.label}-load", plots.to_svg(figure), caption)
    if load.knees:
        knees = [["setting", "highest rate that held", "lowest that did not", "why", "finished"]]
        for knee in load.knees:
            rates = [NONE if rate is None else f"{rate:g}/s" for rate in (knee.held, knee.failed)]
            why = next((each.why for each in knee.verdicts if each.rate == knee.failed), None)
            knees.append([knee.setting, *rates, why or NONE, "yes" if knee.finished else "no"])
        yield Table(knees)


def _rate(rate: float | None) -> str:
    return "trace" if rate is None else f"{rate:g}/s"


def _load_ratio(ratio: Estimate | None) -> str:
    return NONE if ratio is None else f"{ratio.value:.3f} {interval(ratio, '.3f')}".rstrip()


def _foreign(load: LoadCurve) -> str:
    """What kept the KV pools occupied."""
    if load.fill is None:
        return "none"
    asked = f"{load.fill.prompt:,} tokens of prompt and {load.fill.answer:,} of answer each"
    used = "" if load.decode_used is None else f"; {load.decode_used.median:.0%} of the decode worker's pool was in use"
    return f"to fill {load.fill.share:.0%} of the pool, {asked}{used}"


def _load_row(each: SettingNumbers) -> list[str]:
    share = each.medians.get("goodput_share")
    return [
        each.setting,
        _rate(each.rate),
        f"{each.blocks - each.invalid} of {each.blocks}",
        str(each.counts.offered),
        str(each.counts.done),
        _over(each.medians.get("trees_per_s"), ".3f"),
        NONE if share is None or share.median is None else f"{100 * share.median:.1f}",
        *(
            _over(each.medians.get(name), ".2f", " s")
            for name in ("ttft_s_p50", "ttft_s_p99", "latency_s_p50", "latency_s_p99")
        ),
    ]


def _facts(report: RunReport) -> list[list[str]]:
    config, counts = report.config, report.counts
    environments = [session.environment for session in report.sessions]
    return [
        ["", report.label],
        ["cfg", config.name],
        ["cluster of the cfg", config.cluster],
        ["shell router", _each(session.url.partition("://")[2] or session.url for session in report.sessions)],
        ["settings", ", ".join(f"{each.setting} ({each.tree}, {each.mode})" for each in report.settings)],
        ["questions", report.origin.part(len(report.question_ids))],
        ["ids", ", ".join(report.question_ids) or NONE],
        ["repeats", str(config.repeats)],
        ["seeds", f"{config.seed} of the cfg; {len(report.seeds)} of runs, see report.json"],
        ["answers replayed", "yes" if config.replay_answers else "no"],
        [
            "runs",
            f"{counts.made} of {counts.planned} made: {counts.measured} measured, {counts.warmups} warm-ups and "
            f"{counts.recordings} recordings that no number counts; {counts.failed} failed",
        ],
        ["made", _dates(report)],
        ["machine", _each(map(_machine, environments))],
        ["commit", _each(map(_commit, environments))],
        ["software", _each(map(_software, environments))],
    ]


def _settings(report: RunReport) -> list[list[str]]:
    each = report.settings
    more = {"end to end": ["mean end to end", *(_mean(report.mean_latency_s[s.setting]) for s in each)]}
    if any(report.unjudged.values()):
        more["right answers"] = ["answers nobody could judge", *(str(report.unjudged[s.setting]) for s in each)]
    rows = [["", *(s.setting for s in each)]]
    for row in setting_rows(each):
        rows += [row, more[row[0]]] if row[0] in more else [row]
    return rows


def _comparisons(comparisons: Sequence[Comparison]) -> list[list[str]]:
    rows = [["", *(f"{each.setting} / {each.baseline}" for each in comparisons)]]
    rows.append(["pairs complete", *(f"{c.pairs} of {c.pairs + len(c.incomplete)}" for c in comparisons)])
    for same in zip(*map(measures, comparisons), strict=True):
        rows.append([f"{same[0][0]}, ratio", *(ratio(paired) for _, paired in same)])
        rows.append([f"{same[0][0]}, difference", *(difference(paired) for _, paired in same)])
    rows.append(["accuracy, difference", *(points(each.accuracy) for each in comparisons)])
    rows.append(["questions for one point", *map(needed, comparisons)])
    rows.append(["equal answers", *(whole(each.equal_answers) for each in comparisons)])
    rows.append(["same recorded answers", *("yes" if each.same_work else "no" for each in comparisons)])
    return rows


def _mean(estimate: Estimate | None) -> str:
    return NONE if estimate is None else f"{estimate.value:.2f} s {interval(estimate, '.2f')}".rstrip()


def _over(over: Over | None, form: str, unit: str = "") -> str:
    if over is None:
        return NONE
    ends = ["failed" if end is None else f"{end:{form}}" for end in (over.min, over.max)]
    median = "failed" if over.median is None else f"{over.median:{form}}{unit}"
    return median if over.n == 1 else f"{median} ({ends[0]} - {ends[1]})"


def _machine(environment: Environment) -> str:
    memory = f"{environment.memory_bytes / 2**30:.0f} GiB"
    cores = f"{environment.usable_cores} of {environment.cores} cores"
    return ", ".join([environment.cpu, cores, memory, *(environment.gpus or ("no GPU",))])


def _commit(environment: Environment) -> str:
    if environment.commit is None:
        return "unknown"
    return environment.commit[:12] + (" with uncommitted changes" if environment.uncommitted_changes else "")


def _software(environment: Environment) -> str:
    versions = [f"{name} {version or 'not installed'}" for name, version in sorted(environment.versions.items())]
    return ", ".join([f"Python {environment.python}", *versions, environment.platform])


def _dates(report: RunReport) -> str:
    return _span([session.started for session in report.sessions], report.ended)


def _span(started: Sequence[float], ended: float) -> str:
    """Several starts are those of a test that was resumed."""
    begun = ", ".join(map(_date, started)) or "?"
    return f"{begun} to {_date(ended)}"


def _date(time: float) -> str:
    return f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _each(texts: Iterator[str] | map[str]) -> str:
    """Different ones once."""
    return "; ".join(dict.fromkeys(texts)) or NONE


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
