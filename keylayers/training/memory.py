"""The most memory that was held, and how much is free: of the accelerator, or of this machine on a CPU."""

import ctypes
import gc
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch


def reset_peak() -> None:
    """Starts a new measurement of the peak; without effect where the system offers none.

    What was freed before is handed back to the system first, or what follows would find it there and add nothing.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # glibc alone has it
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: sets the resident peak to what is resident now


def peak_bytes() -> int:
    """Most memory held since `reset_peak`: of the accelerator, or resident memory of the whole process on a CPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


def free_bytes() -> int | None:
    """Memory that can still be taken: of the accelerator, or of the machine on a CPU; None where nothing says."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    with suppress(OSError, StopIteration, ValueError):  # Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
