"""Requests to stop, wherever in the program they arrive."""

import os
import signal
import time

import pytest

from keylayers.runs.signals import termination_interrupts


class Interrupted:
    """Asked to stop while it is being destroyed."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs between two instructions
            pass


def test_an_interrupt_that_a_destructor_drops_arrives_a_moment_later(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), termination_interrupts():
        victim = Interrupted()
        del victim
        time.sleep(20)
    assert "Traceback" not in capsys.readouterr().err
