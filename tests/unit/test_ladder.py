"""A stop asks for the whole timeout, then forces within five seconds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.ladder import Rung, ladder, sentence


@given(timeout_s=st.floats(0, 3600))
def test_the_guest_has_the_whole_timeout_and_force_takes_five_seconds(timeout_s: float) -> None:
    rungs = ladder(timeout_s)
    asked = [rung for rung in rungs if not rung.forced]
    forced = [rung for rung in rungs if rung.forced]
    assert rungs == (*asked, *forced)
    assert sum(rung.wait_s for rung in asked) == pytest.approx(timeout_s, abs=1e-6)
    assert [rung.step for rung in forced] == ["quit", "terminate", "kill"]
    assert sum(rung.wait_s for rung in forced) <= 5.0
    assert asked
    assert all(0 <= rung.wait_s <= 5.0 for rung in rungs)


def test_the_button_is_pressed_again_for_a_guest_that_was_still_booting() -> None:
    assert [(rung.step, rung.wait_s) for rung in ladder(12)] == [
        ("power button", 5.0),
        ("power button", 5.0),
        ("power button", 2),
        ("quit", 2.0),
        ("terminate", 1.5),
        ("kill", 1.5),
    ]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("quit", "forced off: the guest did not power off within 2.5 s, the VMM was told to quit"),
        ("terminate", "forced off: the guest did not power off within 2.5 s, SIGTERM to the VMM"),
        ("kill", "forced off: the guest did not power off within 2.5 s, SIGKILL to the VMM"),
    ],
)
def test_a_forced_step_says_what_was_done_and_after_how_long(step: str, words: str) -> None:
    (rung,) = (rung for rung in ladder(2.5) if rung.step == step)
    assert sentence(rung, 2.5) == words
    assert rung == Rung(rung.step, rung.wait_s)


def test_advice_stands_at_the_end() -> None:
    (rung,) = (rung for rung in ladder(2) if rung.step == "quit")
    assert sentence(rung, 2, advice="give it more") == f"{sentence(rung, 2)}; give it more"
    assert sentence(rung, 0, advice="give it more") == f"{sentence(rung, 0)}; give it more"


def test_the_last_steps_need_no_answer_of_the_vmm() -> None:
    assert [rung.step for rung in ladder(0.0) if not rung.asks] == ["terminate", "kill"]
