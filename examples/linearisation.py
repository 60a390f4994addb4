"""Does a network leave its linearisation where its kernel moves? One boundary, both numbers side by side.

Change the regime, the width or the shift; `--tiny` is a quick try.
"""

import argparse

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from scipy.stats import spearmanr

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.lab.benchmarks import class_overlap_shift, load_data
from avalanche_ntk.lab.regimes import build_regime

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="a few seconds, without meaningful numbers")
tiny = parser.parse_args().tiny

digits = load_data("digits", standardise=True)
benchmark = class_overlap_shift(digits, similarity=0, per_class=12 if tiny else 60)
every = 2 if tiny else 10
for regime in ("lazy", "rich"):
    prepared = build_regime(
        regime, "mlp", input_shape=digits.input_shape, n_classes=10, width=64, depth=2, base_lr=0.1, seed=0
    )
    torch.manual_seed(0)
    ntk = NTKPlugin(ProbeSpec(size=20 if tiny else 64), Schedule.every_iterations(every))
    strategy = Naive(
        model=prepared.model,
        optimizer=prepared.optimizer(),
        train_mb_size=30,
        train_epochs=4 if tiny else 30,
        plugins=[ntk],
        evaluator=EvaluationPlugin(ntk_metrics(ntk, linearisation=True), loggers=[]),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)

    table = ntk.trajectory.to_pandas()
    boundary = table[table.event == "experience_start"].iteration.max()
    table["change"] = table.linearisation_error_init.diff().abs() / table.iteration.diff()
    near = table[(table.iteration - boundary).abs() <= 10 * every].dropna(subset=["velocity_per_iteration", "change"])
    rho = spearmanr(near.velocity_per_iteration, near.change).statistic
    print(f"\n{regime}: rank correlation of velocity and change of the error to initialisation {rho:.2f}")
    columns = ["velocity_per_iteration", "linearisation_error_init", "linearisation_error_boundary"]
    after = table[(table.iteration > boundary) & (table.iteration <= boundary + 5 * every)]
    print(after[["iteration", *columns]].to_string(index=False, float_format="{:.2g}".format))
