"""Which signal does what."""

import pytest

from driver.signals import asks_to_stop, short_time, signal_action, stops_at_once, understood


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("SIGTERM", "power button"),
        ("SIGINT", "power button"),
        ("term", "power button"),
        ("SIGSTOP", "pause"),
        ("SIGCONT", "resume"),
        ("SIGKILL", "kill"),
        ("SIGHUP", "agent"),
        ("SIGUSR1", "agent"),
        ("SIGWINCH", None),
        ("", None),
        ("9", None),
    ],
)
def test_a_signal_means_what_the_page_says(name: str, action: str | None) -> None:
    assert signal_action(name) == action


def test_the_refusal_lists_exactly_what_works_without_an_agent() -> None:
    assert understood() == ("SIGTERM SIGINT (power button), SIGSTOP (pause), SIGCONT (resume), SIGKILL (kill)")


@pytest.mark.parametrize(
    ("name", "asks", "at_once"),
    [
        ("", True, False),  # unset
        ("SIGTERM", True, False),
        ("SIGINT", True, False),
        ("kill", False, True),
        ("SIGKILL", False, True),
        ("SIGSTOP", False, False),
        ("SIGHUP", False, False),
        ("SIGWINCH", False, False),
        ("nonsense", False, False),
    ],
)
def test_a_kill_signal_asks_or_does_not_or_means_no_stop(name: str, asks: bool, at_once: bool) -> None:
    assert (asks_to_stop(name), stops_at_once(name)) == (asks, at_once)


def test_a_short_kill_timeout_is_worth_a_word() -> None:
    words = "most guests need a kill_timeout of 30 s, Nomad's default is 5 s"
    assert [short_time(timeout_s) for timeout_s in (0.0, 5.0, 29.9, 30.0, 90.0)] == [words] * 3 + [""] * 2
