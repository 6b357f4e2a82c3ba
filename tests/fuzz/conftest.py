"""A file that asks for more memory than a machine has must not get it from this one."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

MORE = 2 << 30
"""Bytes of address space beyond what the process has when a module's tests begin."""


@pytest.fixture(autouse=True, scope="module")
def bounded_memory() -> Iterator[None]:
    """Where Linux says how much is used now."""
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(status.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
