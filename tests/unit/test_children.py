"""Worker processes end with the process that started them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from avalanche_ntk.children import pool_of

KILLED = """
import os, time
from avalanche_ntk.children import pool_of
if __name__ == "__main__":
    with pool_of(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


def is_there(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process}/stat") as file:  # a process that nobody waits for stays in the table, ended
        return file.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="whether a process has ended is read from /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_of_a_killed_parent_end(how):
    parent = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert is_there(child)
    parent.send_signal(how)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60  # it looks twice a second
    while is_there(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_there(child)


def test_a_pool_works():
    with pool_of(2) as pool:
        assert [f.result() for f in [pool.submit(abs, -n) for n in range(3)]] == [0, 1, 2]
