"""The campaigns see what they are made to see."""

import os
import signal
import time

import campaign
import pytest


def test_outcomes_are_counted(capfd):
    campaign.campaign("even and odd", lambda seed: "even" if seed % 2 == 0 else "odd", 10)
    assert '"even"' in capfd.readouterr().out


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
        (lambda: os._exit(0), "exit code 0"),
        (lambda: time.sleep(60), "hangs"),
    ],
    ids=["exception", "crash", "exit", "hang"],
)
def test_failures_are_seen_and_the_others_go_on(fault, said, capfd):
    def draw(seed):
        if seed == 2:
            fault()
        return "fine"

    with pytest.raises(campaign.Failed, match=f"1 of 5 draws failed\nseed 2: (.|\n)*{said}"):
        campaign.campaign("faults", draw, 5, seconds=2)
    assert '"fine": 4' in capfd.readouterr().out
