"""When what died is started again, and when that is given up: decided from deaths and their times alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launch.restarts import FIRST_PAUSE_S, RESTARTS, STILLBORN, WINDOW_S, Again, GiveUp, Restarts


def test_each_restart_in_a_window_waits_twice_as_long_and_the_last_is_the_last() -> None:
    history = Restarts()
    decisions = [history.died(60.0 * n, ready=True) for n in range(6)]
    assert decisions == [*(Again(2.0**n) for n in range(5)), GiveUp("died 6 times within 30 minutes")]


def test_what_was_long_ago_is_forgotten() -> None:
    history = Restarts()
    for day in range(100):
        assert history.died(86_400.0 * day, ready=True) == Again(1.0)


def test_a_crash_loop_ends_soon_however_slow_it_is() -> None:
    for every_s in (0.1, 2 * WINDOW_S):
        history = Restarts()
        history.died(0.0, ready=True)
        decisions = [history.died(every_s * n, ready=False) for n in range(1, 4)]
        assert [type(decision) for decision in decisions] == [Again, Again, GiveUp]
        assert decisions[-1] == GiveUp("died 3 times in a row before it was ready")


def test_one_that_was_ready_meanwhile_is_in_no_crash_loop() -> None:
    history = Restarts()
    readiness = (False, False, True, False, False)
    assert all(isinstance(history.died(WINDOW_S * n, ready=ready), Again) for n, ready in enumerate(readiness))


@given(st.lists(st.tuples(st.floats(0, 3 * WINDOW_S), st.booleans()), max_size=40))
def test_restarts_are_bounded_in_every_window_and_in_a_row(deaths: list[tuple[float, bool]]) -> None:
    history, now, again, unready = Restarts(), 0.0, list[float](), 0
    for after_s, ready in deaths:
        now += after_s
        decision = history.died(now, ready=ready)
        unready = 0 if ready else unready + 1
        recent = [at for at in again if at > now - WINDOW_S]
        if isinstance(decision, GiveUp):
            assert unready == STILLBORN or len(recent) == RESTARTS
            return
        again.append(now)
        assert len(recent) < RESTARTS
        assert unready < STILLBORN
        assert FIRST_PAUSE_S <= decision.after_s <= FIRST_PAUSE_S * 2 ** (RESTARTS - 1)
