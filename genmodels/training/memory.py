"""The C library's allocator, told to keep what a training step frees."""

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
LARGEST_INT, PAD_BYTES = 2**31 - 1, 64 * 2**20


def keep_freed_memory() -> None:
    """Every step asks for the same large tensors as the one before. By default glibc has given them back to the system,
    which hands out cleared pages, one fault each: a fifth of the time of Progressive GAN at 64x64 on two cores.

    Does nothing with another C library. Threads but the first keep theirs only if there is one arena for all, which
    has to be said before they start: MALLOC_ARENA_MAX=1 in the environment, as Ray's workers have it.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT), (M_TOP_PAD, PAD_BYTES)):
            mallopt(parameter, value)
