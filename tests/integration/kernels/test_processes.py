"""Several processes that share a measurement: the kernel of one process, on every one of them; none waits for ever."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.kernels.sharing import part_of, parts
from tests.support.places import ROOT

HEAD = """
import datetime, os, sys, warnings
import torch, torch.distributed as dist
from torch import nn
from avalanche_ntk.errors import NTKError, MemoryBudgetError
from avalanche_ntk.kernels import empirical_ntk, empirical_ntk_by_group, reference_ntk

warnings.simplefilter("ignore")
torch.set_num_threads(1)
rank, size = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group(
    "gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=size, timeout=datetime.timedelta(seconds=20)
)
WORLD = dist.group.WORLD
torch.manual_seed(0)

class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)
    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().flatten(1))

x, x2 = torch.randn(7, 1, 6, 6), torch.randn(5, 1, 6, 6)
model = CNN().double()
x, x2 = x.double(), x2.double()

def close(a, b):
    assert torch.allclose(a, b, rtol=1e-10, atol=1e-12), (a - b).abs().max()
"""


def run(tmp_path, body, size=2, check=True, timeout=120):
    script = tmp_path / "script.py"
    script.write_text(HEAD + body)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for rank in range(size)
    ]
    try:
        ended = [p.communicate(timeout=timeout) for p in started]
    finally:
        for p in started:
            p.kill()
    if check:
        assert [p.returncode for p in started] == [0] * size, "\n".join(err[-3000:] for _, err in ended)
    return [(p.returncode, out, err) for p, (out, err) in zip(started, ended, strict=True)]


def test_the_kernel_of_one_process(tmp_path):
    """Outputs or rows are shared out; running statistics are the first process's."""
    run(
        tmp_path,
        """
for reduction in ("trace", "sum_logits", "full"):
    for other in (None, x2):
        expected = reference_ntk(model, x, other, reduction=reduction)
        found, info = empirical_ntk(model, x, other, reduction=reduction, process_group=WORLD, return_info=True)
        close(found, expected)
        assert info.processes == size
projected = dict(reduction="projected", n_projections=2)
one, told = empirical_ntk(model, x, return_info=True, **projected)
two, shared = empirical_ntk(model, x, return_info=True, process_group=WORLD, **projected)
close(two, one)
close(shared.standard_error, told.standard_error)
groups = {"body": ["conv", "norm"], "head": ["fc"]}
for name, kernel in empirical_ntk_by_group(model, x, groups, process_group=WORLD).items():
    close(kernel, empirical_ntk_by_group(model, x, groups)[name])

model.norm.running_mean += rank  # as in training, where each process sees its own half of the data
before = model.norm.running_mean.clone()
found = empirical_ntk(model, x, process_group=WORLD)
assert torch.equal(model.norm.running_mean, before)
model.norm.running_mean -= rank
close(found, reference_ntk(model, x, reduction="trace"))
""",
    )


def test_more_processes_than_outputs_or_samples(tmp_path):
    run(
        tmp_path,
        """
for some in (x, x[:1], x[:2]):
    close(empirical_ntk(model, some, process_group=WORLD), reference_ntk(model, some, reduction="trace"))
    sums = dict(reduction="sum_logits", process_group=WORLD)
    close(empirical_ntk(model, some, x2, **sums), reference_ntk(model, some, x2, reduction="sum_logits"))
""",
        size=4,
    )


def test_one_fails_and_all_are_told(tmp_path):
    """What is wrong in one process ends the call in all of them, and the group can be used again."""
    run(
        tmp_path,
        """
wrong = nn.Sequential(nn.Flatten(), nn.Linear(36, 3).double())
class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = wrong
    def forward(self, x):
        if rank == 1:
            raise ValueError("no space")
        return self.inside(x)
try:
    empirical_ntk(Fails(), x, process_group=WORLD)
except NTKError as exc:
    text = str(exc)
assert "no space" in text, text
assert ("process 1 of the 2" in text) == (rank == 0), text

with torch.no_grad():
    wrong[1].bias += rank
try:
    empirical_ntk(wrong, x, process_group=WORLD)
except NTKError as exc:
    text = str(exc)
assert "parameter '1.bias' of process 1 differs from that of process 0" in text, text
try:
    empirical_ntk(model, x + rank, process_group=WORLD)
except NTKError as exc:
    text = str(exc)
assert "input '0 of batch 1' of process 1 differs from that of process 0" in text, text
close(empirical_ntk(model, x, process_group=WORLD), reference_ntk(model, x, reduction="trace"))
""",
    )


def test_a_process_that_is_killed(tmp_path):
    """The others end with a message, long before the time that a hang would take."""
    (_, out, err), (code, _, _) = run(
        tmp_path,
        """
class Dies(CNN):
    calls = 0
    def forward(self, x):
        Dies.calls += 1
        if rank == 1 and Dies.calls == 3:
            os.kill(os.getpid(), 9)
        return super().forward(x)
try:
    empirical_ntk(Dies().double(), x, process_group=WORLD)
except NTKError as exc:
    print(type(exc).__name__, exc)
    os._exit(0)
""",
        check=False,
    )
    assert code == -9
    assert out.startswith("ProcessError another process of the group did not answer"), err


def test_distributed_wrappers(tmp_path):
    """DistributedDataParallel and both kinds of FSDP: the kernel of the module inside, and nothing is left behind."""
    run(
        tmp_path,
        """
import copy
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.device_mesh import init_device_mesh

class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
    def forward(self, x):
        return self.head(self.second(self.first(x).tanh()).tanh())
plain, inputs = Deep().double(), torch.randn(5, 6).double()
expected = reference_ntk(plain, inputs, reduction="trace")
parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
close(empirical_ntk(parallel, inputs, process_group=WORLD), expected)

mesh = init_device_mesh("cpu", (size,))
spread = copy.deepcopy(plain)
fully_shard(spread.second, mesh=mesh)
fully_shard(spread, mesh=mesh)
output = spread(inputs).detach()
before = {name: (id(p), p.detach().clone()) for name, p in spread.named_parameters()}
for group in (None, WORLD):
    close(empirical_ntk(spread, inputs, process_group=group), expected)
for name, p in spread.named_parameters():
    old, now = before[name][1], p.detach()
    assert before[name][0] == id(p) and type(old) is type(now)
    assert torch.equal(*(t.to_local() if hasattr(t, "to_local") else t for t in (old, now)))
assert torch.equal(spread(inputs).detach(), output)
spread(inputs).sum().backward()
try:
    empirical_ntk(spread, inputs, memory_budget=100)
except MemoryBudgetError as exc:
    assert "gathered from all processes, take 1,240 bytes" in str(exc), exc
else:
    raise AssertionError
flat = FullyShardedDataParallel(
    copy.deepcopy(plain), auto_wrap_policy=ModuleWrapPolicy({nn.Linear}), device_id=torch.device("cpu")
)
output = flat(inputs).detach()
for group in (None, WORLD):
    close(empirical_ntk(flat, inputs, process_group=group), expected)
assert torch.equal(flat(inputs).detach(), output)
""",
    )


def test_what_is_no_group():
    model, x = nn.Linear(2, 1), torch.ones(2, 2)
    with pytest.raises(ArgumentError, match=r"found no initialised torch\.distributed"):
        empirical_ntk(model, x, process_group="world")


def test_rows_cover_the_kernel_once():
    for n, m in [(1, None), (7, None), (100, None), (7, 5), (2, 9)]:
        for cut in ([p for p in (part_of(k, 4, n, m) for k in range(4)) if p], parts(n, m, 3)):
            times = torch.zeros(n, m or n)
            for part in cut:
                part.put(times, times[part.rows, part.columns] + 1, mirrored=False)
            upper = times.triu() if m is None else times
            assert torch.equal(upper, torch.ones(n, m or n).triu() if m is None else torch.ones(n, m or n)), (n, m)


def test_processes_have_about_as_many_entries_each():
    counts = [
        sum(100 - i for i in range(p.rows.start, p.rows.stop)) for p in (part_of(k, 4, 100, None) for k in range(4))
    ]
    assert max(counts) < 1.1 * min(counts)
    assert sum(counts) == 100 * 101 // 2
