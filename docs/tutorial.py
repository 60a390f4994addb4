# %% [markdown]
# # Tutorial: from a plain Avalanche script to a report
#
# You have a script that trains a network task after task. At the end of this page you know what the new task did to the
# kernel of the first one, whether that was more than what fresh samples do, which layers moved, and where it is all
# written down. Everything here runs in about a minute on one core and downloads nothing.
#
# ## 1. A plain script
#
# Two tasks of five digits each, an MLP, SGD, and Avalanche's own metrics.

# %%
import io
import tempfile
from pathlib import Path

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_ntk.lab.benchmarks import class_overlap_shift, no_shift
from avalanche_ntk.lab.models import MLP

torch.set_num_threads(1)
shift = class_overlap_shift("digits", similarity=0, classes_per_task=5, seed=0)
print(shift.description)


def train(benchmark, plugins=(), metrics=(), seed=0):
    """Train Naive on every task of a benchmark; return the strategy and its last accuracies."""
    torch.manual_seed(seed)
    model = MLP(in_features=64, n_classes=10, width=128, depth=2)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=16,
        train_epochs=6,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), *metrics, loggers=[TextLogger(io.StringIO())]),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        found = strategy.eval(benchmark.test_stream)
    return strategy, {name[-6:]: round(value, 3) for name, value in found.items() if "Top1_Acc_Exp" in name}


plain, accuracies = train(shift)
print(accuracies)

# %% [markdown]
# The first task is forgotten. What happened inside?
#
# ## 2. One plugin and one line of metrics
#
# The probe is 64 samples of the first task. The schedule measures every five iterations: one cadence, so that
# velocities can be compared.

# %%
from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics

folder = Path(tempfile.mkdtemp())


def watch(benchmark, name, seed=0, **arguments):
    """Train and measure."""
    ntk = NTKPlugin(ProbeSpec(size=64), Schedule.every_iterations(5), run_folder=folder / name, seed=seed, **arguments)
    strategy, _ = train(benchmark, [ntk], [ntk_metrics(ntk)], seed)
    ntk.close()
    return ntk.trajectory, strategy


trajectory, watched = watch(shift, "shift")
pairs = zip(plain.model.parameters(), watched.model.parameters(), strict=True)
print("the same weights, bit for bit:", all(torch.equal(a, b) for a, b in pairs))

# %% [markdown]
# Measuring has not changed training.
#
# ## 3. What happened at the boundary
#
# One row is one measurement. The last rows before the boundary and the first ones after it:

# %%
table = trajectory.to_pandas()
columns = ["event", "iteration", "spectral_norm", "distance_init", "alignment", "velocity_per_iteration"]
start = table.index[(table["event"] == "experience_start") & (table["experience"] == 1)][0]
print(table.loc[start - 3 : start + 5, columns].to_string(index=False, float_format="{:.3g}".format))

# %%
boundary = trajectory.reactivations[1]
print(f"spike {boundary.spike:.2g}, ratio {boundary.ratio:.0f}, λ_max falls to {boundary.norm_dip:.2f} of what it was")

# %% [markdown]
# The whole course, in the four curves of the paper:

# %%
from avalanche_ntk.report import four_panels

four_panels({"shift": folder / "shift"})

# %% [markdown]
# ## 4. Compared with what?
#
# A ratio alone is no verdict: a redraw of samples of the *same* classes makes the kernel move faster too. So the same
# training runs again without a change of task, three times.

# %%
same_classes = no_shift("digits", classes_per_task=5, seed=0)
controls = [watch(same_classes, f"control-{seed}", seed)[0] for seed in range(3)]
for control in controls:
    print(f"control: spike {control.reactivations[1].spike:.2g}, ratio {control.reactivations[1].ratio:.1f}")
verdict = trajectory.verdicts(controls)[1]
print(f"{verdict.verdict}: {verdict.reason}")

# %% [markdown]
# Three controls cannot give more than "above the controls": one number exceeds three others by chance in one case of
# four. With 19 of them the verdict can be "reactivated" at the 5 % level.
#
# ## 5. Which layers?

# %%
from avalanche_ntk.observables import PerLayer

layers, _ = watch(shift, "layers", observe=[PerLayer()])
found = layers.to_pandas()
velocity = [name for name in found.columns if name.startswith("layer[") and name.endswith("].velocity_per_iteration")]
after = found[(found["experience"] == 1) & (found["exp_iteration"] > 0)].head(3)[velocity].max()
before = found[found["experience"] == 0][velocity].tail(10).median()
print((after / before).round(1).to_string())

# %% [markdown]
# ## 6. One page of all of it

# %%
from avalanche_ntk.report import write_report

without_shift = {f"control {seed}": folder / f"control-{seed}" for seed in range(3)}
written = write_report({"shift": folder / "shift"}, folder / "report", control=without_shift, formats=["svg"])
print(written.page.name, len(written.figures), "figures,", len(written.tables), "tables")

# %% [markdown]
# `report.html` opens in any browser and needs no network. From the shell it is
#
# ```sh
# avalanche-ntk report shift --control control-0 --control control-1 --control control-2 --out report
# ```
#
# Where to go on: [add it to your own strategy](usage.md), [choose probe, reduction and schedule](choosing.md),
# [read the curves](reading.md).
