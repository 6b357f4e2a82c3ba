"""A polite request to stop (SIGTERM, as schedulers send it) treated as Ctrl-C is, so that both are recorded."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AGAIN = 0.05
"""Seconds after which an interrupt that Python dropped is raised once more."""


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt in the main thread; the earlier handlers are restored afterwards.

    An interrupt that falls into a destructor or a callback of the garbage collector, where Python can only print and
    drop it, is raised again in a moment.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread set handlers
        return
    earlier, hook = signal.signal(signal.SIGTERM, _interrupt), sys.unraisablehook

    def raise_later(dropped: "UnraisableHookArgs") -> None:
        if dropped.exc_type is not KeyboardInterrupt:
            hook(dropped)
            return
        timer = threading.Timer(AGAIN, _thread.interrupt_main)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = raise_later
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, earlier)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("terminated")
