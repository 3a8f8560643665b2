"""Which signal does what."""

import pytest

from driver.signals import signal_action, understood


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
