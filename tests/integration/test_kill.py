"""A run killed at any moment leaves a folder that loads and lacks at most the measurement being written."""

import os
import signal
import subprocess
import sys
import time

import pytest

from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from tests.support.places import ROOT

SCRIPT = """
import sys
from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from tests.support.lines import make_strategy, run, tiny_stream

ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), run_folder=sys.argv[1])
add = ntk._measure

def measure(*arguments):
    add(*arguments)
    print(len(ntk.trajectory), flush=True)

ntk._measure = measure
run(make_strategy(plugins=[ntk], epochs=10_000), tiny_stream())
"""


@pytest.mark.parametrize("delay", [0.0, 0.0007, 0.0023, 0.011])
def test_sigkill_while_measuring(tmp_path, delay):
    root = str(ROOT)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 20:
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    told = max([20, *map(int, rest.split())])

    read = Trajectory.load(str(tmp_path / "run"))
    assert told <= len(read) <= told + 1
    assert [m.index for m in read] == list(range(len(read)))
    for m in read:
        assert read.kernel(m.index).shape == (8, 8)
    with RunFolder.resume(tmp_path / "run") as folder:
        assert len(folder.records()) == len(read)
