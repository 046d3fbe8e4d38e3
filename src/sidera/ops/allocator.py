"""Keep freed memory in the process instead of handing it back to the kernel after every step.

Training and decoding allocate the same large temporaries over and over. glibc returns each to the kernel and takes it
again, page fault by page fault; a training step of TIGER on one thread is a fifth shorter without that.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEPT_BYTES = 2**31 - 1
PAD_BYTES = 256 * 2**20
MMAP_BYTES = 2**30


def keep_memory() -> bool:
    """Tell glibc's allocator to hold on to freed memory; False where there is no glibc (nothing changes then).

    It holds for the whole process, so the command line calls it and the library does not.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_TRIM_THRESHOLD, KEPT_BYTES), (M_TOP_PAD, PAD_BYTES), (M_MMAP_THRESHOLD, MMAP_BYTES))
    return sum(mallopt(name, value) for name, value in settings) == len(settings)


def release_memory() -> bool:
    """Hand free pages back to the kernel; False where there is no glibc.

    Called where one kind of work ends and another begins (training, validation, evaluation): their temporaries have
    other sizes, and what the one left in pieces is of no use to the other. It takes milliseconds.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL("libc.so.6").malloc_trim(0))
    except (OSError, AttributeError):
        return False
