"""An observable's own declaration is all that metrics, tables, warnings and the report know of it."""

import numpy as np
import pytest

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.adapters.evaluation import NTKMetric
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.observables import Metric, Observable, Observation, families, register
from avalanche_ntk.observables import registry as registered
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.report import write_report
from tests.support.lines import make_strategy, run, tiny_stream

BUILT_IN = {
    *("norms", "distance", "velocity", "alignment", "spectrum", "reactivation", "kernel_image", "cost"),
    *("linearisation", "forecast", "per_layer", "features", "class_blocks", "task_overlap", "regression", "neurons"),
    "buffer_share",
}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(registered, "_FAMILIES", dict(registered._FAMILIES))


class Biases(Observable):
    name = "biases"
    flag = "biases"
    metrics = (Metric("NTK_BiasNorm", "bias_norm", "m"), Metric("NTK_Bias", "bias[{NAME}]"))

    def observe(self, moment):
        found = {name: float(p.detach().norm()) for name, p in moment.model.named_parameters() if name.endswith("bias")}
        return Observation({"bias_norm": sum(found.values()), **{f"bias[{name}]": v for name, v in found.items()}})


def test_flags_of_the_package():
    assert families().keys() >= BUILT_IN
    on = {flag for flag, family in families().items() if family.on}
    assert on == {"norms", "distance", "velocity", "alignment", "reactivation", "cost"}


@pytest.mark.usefixtures("registry")
def test_a_registered_observable_is_in_loggers_tables_and_report(tmp_path):
    register(Biases)
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(2), run_folder=tmp_path / "run")
    strategy = make_strategy(plugins=[ntk], metrics=[ntk_metrics(ntk, biases=True)])
    run(strategy, tiny_stream())
    table = ntk.trajectory.to_pandas()
    assert np.isfinite(table["bias_norm"]).all()
    parts = [column for column in table if column.startswith("bias[")]
    assert np.allclose(table[parts].sum(axis=1), table["bias_norm"], rtol=1e-12)
    logged = strategy.evaluator.get_all_metrics()
    tail = "/train_phase/train_stream/Task000/Exp000"
    assert logged[f"NTK_BiasNorm{tail}"] == (table["iteration"].tolist(), table["bias_norm"].tolist())
    assert {f"NTK_Bias{tail}/{part[5:-1]}" for part in parts} <= logged.keys()
    meta = RunFolder.open(tmp_path / "run").meta
    assert {"tag": "NTK_BiasNorm", "column": "bias_norm", "unit": "m"} in meta["columns"]
    written = write_report(tmp_path / "run", tmp_path / "report")
    assert "Further numbers measured beside the kernel" in written.page.read_text()


@pytest.mark.usefixtures("registry")
def test_what_cannot_be_registered_is_refused():
    register(Biases)
    register(Biases)  # a notebook's cell that is run again
    cases = {
        "expected a flag that is a Python identifier": {"flag": ""},
        "metrics or images": {"flag": "mine", "metrics": ()},
        "flag='norms'": {"flag": "norms", "metrics": (Metric("NTK_Mine", "mine"),)},
        "the tag 'NTK_Velocity' is taken by velocity": {"flag": "mine", "metrics": (Metric("NTK_Velocity", "mine"),)},
        "name='biases' is taken by Biases": {"flag": "mine", "metrics": (Metric("NTK_Mine", "mine"),)},
    }
    for message, declared in cases.items():
        with pytest.raises(ArgumentError, match=message):
            register(type("Mine", (Biases,), declared))
    with pytest.raises(ArgumentError, match="a metric needs a tag without '/' and a column"):
        Metric("NTK/Mine", "mine")
    with pytest.raises(ArgumentError, match=r"unknown metric 'velocities'.*velocity"):
        ntk_metrics(NTKPlugin(), velocities=True)


def test_a_varying_part_of_a_column():
    metric = Metric("NTK_Layer", "layer[{LAYER}].moved")
    assert metric.pattern.fullmatch("layer[a[0].b].moved")["part"] == "a[0].b"
    assert metric.pattern.fullmatch("layer[a].moved_too") is None
    assert (metric.shown_tag, metric.shown_column) == ("NTK_Layer/…/LAYER", "layer[LAYER].moved")
    assert isinstance(ntk_metrics(NTKPlugin(), per_layer=True)[0], NTKMetric)
