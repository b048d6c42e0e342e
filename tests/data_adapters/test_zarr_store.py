"""What a process keeps beside its cache of decoded chunks."""

import platform
import subprocess
import sys

import pytest

# Threads that allocate at the same time, and what glibc says of its heaps (malloc_info(3)).
PROGRAM = """
import ctypes, sys, tempfile, threading
if sys.argv[1] == "with":
    from data_adapters import zarr_store
    zarr_store._shared_context()
barrier = threading.Barrier(8)
def work():
    barrier.wait()
    for _ in range(200):
        bytearray(70_000)
threads = [threading.Thread(target=work) for _ in range(8)]
[one.start() for one in threads]
[one.join() for one in threads]
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().decode().count("<heap nr="))
"""


def heaps(how: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_threads_that_decode_free_into_one_heap():
    assert heaps("without") > 1, "the test itself sees no difference"
    assert heaps("with") == 1
