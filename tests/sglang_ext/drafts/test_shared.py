"""Bounds of groups of siblings' texts."""

from sglang_ext.drafts.shared import Groups


def test_the_oldest_group_goes_when_there_are_too_many() -> None:
    groups = Groups(max_tokens=100, max_groups=2)
    first, second = groups.join("a"), groups.join("a")
    first.extend([1, 2, 3])
    groups.join("b")
    assert [text.tokens.tolist() for text in second.others()] == [[1, 2, 3]]
    groups.join("c")
    assert (len(groups), groups.tokens_held, groups.dropped) == (2, 0, 1)
    assert second.others() == []
    first.extend([4])  # of no use to anybody, and no error
    assert groups.tokens_held == 0


def test_the_oldest_group_goes_when_there_are_too_many_tokens() -> None:
    groups = Groups(max_tokens=5, max_groups=9)
    groups.join("a").extend([1, 2, 3])
    groups.join("b").extend([1, 2])
    assert groups.tokens_held == 5
    groups.join("b").extend([1])
    assert (len(groups), groups.tokens_held, groups.dropped) == (1, 3, 1)
    groups.join("c").extend(range(9))
    assert (len(groups), groups.tokens_held, groups.dropped) == (0, 0, 3)


def test_a_text_outlives_its_request() -> None:
    groups = Groups(max_tokens=9, max_groups=9)
    groups.join("a").extend([1, 2])
    assert len(groups.join("a").others()) == 1
