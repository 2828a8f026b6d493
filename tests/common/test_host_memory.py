import ctypes
import platform
from pathlib import Path

import pytest

from densenet_flax.common.host_memory import trim_host_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc's malloc")


def resident_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@glibc
def test_memory_between_blocks_in_use_goes_back():
    """Without being asked, glibc gives back what is free at the end of its heap only."""
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    size, count = 100_000, 2_000  # below the size that is mapped by itself
    blocks = [library.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    last = blocks.pop()
    for block in blocks:
        library.free(block)
    before = resident_megabytes()
    trim_host_memory()
    after = resident_megabytes()
    library.free(last)
    assert before - after > 150
