"""Many tasks in a row: does the first task's kernel move ever further from its state at the first boundary?"""

import argparse

from avalanche_ntk.strategies import build

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.lab.benchmarks import load_data, no_shift, permuted
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures import kernel_distance

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="as small as possible, to check that it runs")
tiny = parser.parse_args().tiny

data = load_data("digits", standardise=True)
same = {"n_tasks": 4 if tiny else 20, "classes_per_task": 5, "per_class": 5 if tiny else 20, "seed": 0}
benchmarks = {"new pixels": permuted(data, **same), "control": no_shift(data, fresh=False, **same)}

series = {}
for name, benchmark in benchmarks.items():
    ntk = NTKPlugin(ProbeSpec(size=20, from_experience=0), Schedule.every_iterations(2 if tiny else 5))
    model = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=16 if tiny else 256, seed=0)
    strategy = build(
        "Naive",
        benchmark=benchmark,
        model=model,
        epochs=3 if tiny else 12,
        mb_size=10 if tiny else 20,
        lr=0.1,
        plugins=[ntk],
        seed=0,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    starts = [m.index for m in ntk.trajectory if m.clock.event == "experience_start"][1:]
    first = ntk.trajectory.kernel(starts[0])
    series[name] = [
        (ntk.trajectory.reactivations[number].spike, kernel_distance(first, ntk.trajectory.kernel(index)))
        for number, index in enumerate(starts, start=1)
    ]

print("          " + "".join(f"{name:>24}" for name in series))
print("boundary  " + "       spike    distance" * len(series))
for number, row in enumerate(zip(*series.values(), strict=True), start=1):
    print(f"{number:8}  " + "".join(f"{spike:12.2e}{distance:12.2e}" for spike, distance in row))
