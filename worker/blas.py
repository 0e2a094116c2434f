"""The BLAS below numpy: held to one thread, and named, since the bits of a product depend on both."""

import platform
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits


def one_thread() -> AbstractContextManager[object]:
    """Hold BLAS to one thread, from now on or for the length of a `with` block.

    A product split among threads may be added up in another order, and the workers are the parallelism anyway.
    """
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def fingerprint() -> dict[str, str]:
    """Return what the bits of a result depend on beside the job: numpy, the BLAS kernel, and the kind of CPU."""
    blas = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return {
        "numpy": np.__version__,
        "blas": ", ".join(sorted(f"{library['internal_api']} {library['version']}" for library in blas)) or "unknown",
        "kernel": ", ".join(sorted({str(library.get("architecture", "unknown")) for library in blas})) or "unknown",
        "cpu": _cpu(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
