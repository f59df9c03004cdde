"""The timeline picture, by what is drawn and not by its pixels."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from experiments.settings.aggregate import Pair
from experiments.settings.timeline import draw_timeline, median_pair
from tests.experiments.records import make_record, make_result, with_drafts


def pair(layers: tuple[int, ...] = (9, 3, 1), tree: str = "tree_9_3_1", latency_s: float = 20.0) -> Pair:
    return Pair(
        baseline=make_result("blocking", tree=tree, layers=layers, latency_s=latency_s),
        other=make_result("spliced", tree=tree, layers=layers, latency_s=latency_s),
    )


def bars(figure: Figure, panel: int) -> dict[str, list[Any]]:
    """Rectangles of a panel by kind."""
    found: dict[str, list[Any]] = {}
    for container in figure.axes[panel].containers:
        assert isinstance(container, BarContainer)
        found.setdefault(str(container.get_label()), []).extend(container.patches)
    return found


def test_each_agent_has_its_bars() -> None:
    figure = draw_timeline([pair().runs])
    blocking, spliced = bars(figure, 0), bars(figure, 1)
    assert {kind: len(found) for kind, found in blocking.items()} == {"waiting": 4, "exposed": 13, "decode": 13}
    assert {kind: len(found) for kind, found in spliced.items()} == {
        "waiting": 16,
        "exposed": 13,
        "decode": 13,
        "hidden": 12,
    }
    exposed = blocking["exposed"][-1]
    assert exposed.get_width() == pytest.approx(2.0)
    assert spliced["exposed"][-1].get_width() == pytest.approx(1.0)


def test_the_root_is_at_the_bottom_and_both_panels_share_their_axis() -> None:
    figure = draw_timeline([pair().runs])
    blocking, spliced = figure.axes
    labels = blocking.get_yticklabels()
    assert labels[0].get_text() == "p1"
    assert labels[-1].get_text() == "s1"
    bottom, top = blocking.get_ylim()
    assert bottom > top
    assert blocking.get_xlim() == spliced.get_xlim()
    assert blocking.get_position().y0 > spliced.get_position().y1


def test_first_token_and_ends_are_marked() -> None:
    figure = draw_timeline([pair().runs])
    marks = [{line.get_label(): line.get_xdata()[0] for line in axes.lines} for axes in figure.axes]  # type: ignore[index]
    blocking, spliced = make_record("blocking", layers=(9, 3, 1)), make_record("spliced", layers=(9, 3, 1))
    assert marks[0] == {"first token": blocking.ttft_s, "end": blocking.duration_s}
    assert marks[1] == {
        "first token": spliced.ttft_s,
        "end": spliced.duration_s,
        "end of the first": blocking.duration_s,
    }


def test_each_tree_has_its_pair_and_panels_do_not_overlap(tmp_path: Path) -> None:
    figure = draw_timeline([pair().runs, pair((3, 1), "tree_3_1").runs, pair((1, 1), "chain_2").runs])
    assert len(figure.axes) == 6
    boxes = [axes.get_position() for axes in figure.axes]
    for above, below in itertools.pairwise(boxes):
        assert above.y0 > below.y1
    assert boxes[-1].y0 > 0
    path = tmp_path / "timeline.png"
    figure.savefig(path)
    assert path.stat().st_size > 20_000
    width, height = (int.from_bytes(path.read_bytes()[at : at + 4]) for at in (16, 20))
    assert width > 1000
    assert height > 1000


def test_what_was_drafted_is_told() -> None:
    first, second = pair((3, 1), "tree_3_1").runs
    assert second.record is not None
    figure = draw_timeline([(first, msgspec.structs.replace(second, record=with_drafts(second.record)))])
    assert [[text.get_text().strip() for text in axes.texts] for axes in figure.axes] == [[], ["2.0"] * 3 + ["3.0"]]
    assert "decode (tokens a step)" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "decode" in [text.get_text() for text in draw_timeline([(first, second)]).legends[0].get_texts()]


def test_a_setting_without_another_stands_alone() -> None:
    alone = Pair(baseline=make_result("tree+overlap", tree="tree_9_3_1", layers=(9, 3, 1)), other=None)
    figure = draw_timeline([alone.runs, pair((3, 1), "tree_3_1").runs])
    assert len(figure.axes) == 3
    assert figure.axes[0].get_title(loc="left").startswith("tree+overlap (spliced):  end ")
    assert [axes.get_xlabel() != "" for axes in figure.axes] == [True, False, True]
    assert figure.axes[2].get_title(loc="left").endswith(" s less than blocking)")


def test_a_panel_of_another_tree_names_it() -> None:
    dense = make_result("dense", tree="dense_9_9_1", layers=(9, 9, 1))
    others = (
        make_result(name, tree="tree_9_3_1", layers=(9, 3, 1), record=make_record("spliced", tree="tree_9_3_1"))
        for name in ("tree", "spliced")
    )
    figure = draw_timeline([(dense, *others)])
    first, second, third = (axes.get_title(loc="left") for axes in figure.axes)
    assert first.startswith("dense (spliced):  end ")
    assert second.startswith("tree (tree_9_3_1, spliced):  end ")
    assert third.startswith("spliced (tree_9_3_1):  end ")
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_the_median_question_is_shown() -> None:
    many = [pair(latency_s=seconds) for seconds in (50.0, 10.0, 30.0, 20.0)]
    assert median_pair(many) is many[3]
    assert median_pair([]) is None
