"""How the operating system gives this process its memory."""

import ctypes
import os
import platform
import sys
from pathlib import Path

_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Large blocks from the heap, in pages of 2 MB, handed back when `trim_host_memory` says so only.
_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
)


def restart_with_huge_pages() -> None:
    """Starts this program again, once, under a memory allocator that keeps large blocks.

    XLA takes gigabytes of temporaries from glibc at each step and gives them back after it. By
    default each is then mapped anew, page by page of 4 kB, which takes a third of a training step
    on two CPU cores. glibc reads its tunables when a process starts and at no other time, so the
    process replaces itself, which costs a fifth of a second. Whoever has set `GLIBC_TUNABLES`, to
    anything, keeps what they have, and other C libraries and operating systems are left alone.
    """
    if "GLIBC_TUNABLES" in os.environ or not _has_tunables():
        return
    os.environ["GLIBC_TUNABLES"] = _TUNABLES
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)


def trim_host_memory() -> None:
    """Returns memory that is free to the system, where the C library is glibc.

    To be called after work of another kind than what follows. A compiler takes more than a gigabyte
    in small blocks; what it leaves is in pieces, and large temporaries find no room among them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def _has_tunables() -> bool:
    """Whether this is glibc 2.35 or newer, under a kernel that gives huge pages to who asks."""
    name, version = platform.libc_ver()
    if sys.platform != "linux" or name != "glibc" or not sys.executable:
        return False
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    return numbers >= [2, 35] and _PAGES.is_file() and "[never]" not in _PAGES.read_text()
