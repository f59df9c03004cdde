"""When a decode step is taken to be over."""

from __future__ import annotations

from shell_router.core.rhythm import Rhythm


def test_a_step_is_over_when_all_who_decode_have_spoken_once() -> None:
    rhythm = Rhythm()
    three = ("a", "b", "c")
    for step in range(3):
        for agent in three:
            assert rhythm.is_over(three) is (agent == "a" and step > 0)
            rhythm.hear(agent, step + 0.0)
        assert rhythm.is_over(three)
    rhythm.hear("b", 3.0)
    assert not rhythm.is_over(three), "the next has begun"
    assert rhythm.is_over(("b",)), "the others have ended"
    assert rhythm.is_over(())


def test_one_that_keeps_silent_is_waited_for_a_part_of_a_step() -> None:
    rhythm = Rhythm()
    assert rhythm.wait_s == 0.01
    for step in range(40):
        rhythm.hear("a", step * 0.04)
    assert abs(rhythm.wait_s - 0.01) < 1e-9
    for step in range(40):
        rhythm.hear("b", 10 + step * 0.0035)
    assert rhythm.wait_s == 0.001
    for step in range(40):
        rhythm.hear("c", 20.0 + step)
    assert rhythm.wait_s == 0.025, "longer than that no append is held back"
