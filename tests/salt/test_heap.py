"""glibc's heaps of a process with threads, with and without `use_one_arena`."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
if "one" in sys.argv:
    from salt.acceleration.heap import use_one_arena
    use_one_arena()
library = ctypes.CDLL(None)
library.malloc.restype, library.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
held = threading.Barrier(5)
def allocate():
    library.malloc(100_000)
    held.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads: thread.start()
held.wait()
file = ctypes.c_void_p(library.fopen(sys.argv[1].encode(), b"w"))
library.malloc_info(0, file)
library.fclose(file)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")
def test_threads_share_one_heap(tmp_path):
    def heaps(*options: str) -> int:
        file = tmp_path / "heaps.xml"
        subprocess.run([sys.executable, "-c", PROGRAM, str(file), *options], check=True)
        return file.read_text().count("<heap nr=")

    assert heaps() > 1 and heaps("one") == 1
