"""Memory that ends where it was asked to end: a kernel that reads or writes beyond it ends the process.

Under AddressSanitizer its own malloc does that, and also tells what was freed. Elsewhere the pages before and behind
are protected, and the memory lies against the one or the other.
"""

import contextlib
import ctypes
import mmap
import os
from unittest import mock

import numpy as np

from bpaccel.engines.cpu import forward, launch

SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
PAGE = mmap.PAGESIZE


def exact(size, at_end=True):
    """``size`` bytes, an array of uint8 (nan in every dtype), with nothing readable behind them; or before them."""
    if SANITIZED:
        memory = np.empty(size, np.uint8)
    else:
        inner = max(1, -(-size // PAGE)) * PAGE
        pages = np.frombuffer(mmap.mmap(-1, inner + 2 * PAGE), np.uint8)
        for page in (0, PAGE + inner):
            _protect(pages.ctypes.data + page)
        first = PAGE + inner - size if at_end else PAGE
        memory = pages[first : first + size]
    memory[:] = 0xFF
    return memory


def _protect(page):
    library = ctypes.CDLL(None, use_errno=True)
    if library.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")


@contextlib.contextmanager
def strict(at_end=True):
    """While it lasts, what the fused engine lends to its kernels is exact, new each time, and full of nan."""

    def lend(memory, size):
        return exact(int(size), at_end)

    def take_back(memory, lent):
        """Nothing is lent twice."""

    with (
        mock.patch.object(launch.Memory, "lend", lend),
        mock.patch.object(launch.Memory, "take_back", take_back),
        mock.patch.object(launch, "aligned", exact),
        mock.patch.object(forward, "aligned", exact),
    ):
        yield


def pytest_configure(config):
    """As a plugin of pytest (-p memory): while all tests last."""
    lasting = contextlib.ExitStack()
    lasting.enter_context(strict())
    config.add_cleanup(lasting.close)
