"""TensorBoard serves the curves, their layout, the hyperparameters and the pictures over its HTTP API."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from avalanche.logging import TensorboardLogger

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.adapters.tensorboard import LAYOUT, add_dashboard, add_hparams, add_layout
from avalanche_ntk.errors import ArgumentError, PluginError
from tests.support.lines import make_strategy, run, tiny_stream


def trained(folder, **arguments):
    benchmark = tiny_stream(n_experiences=2)
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), on_error="raise", seed=7)
    logger = TensorboardLogger(folder)
    metrics = [ntk_metrics(ntk, kernel_image=True, spectrum=True)]
    strategy = make_strategy(benchmark, plugins=[ntk], metrics=metrics, loggers=[logger], **arguments)
    run(strategy, benchmark)
    return logger, strategy, ntk


def test_what_is_no_tensorboard_logger_is_refused():
    with pytest.raises(ArgumentError) as caught:
        add_layout(object())
    assert str(caught.value) == (
        "expected Avalanche's TensorboardLogger, found object. Give the logger that the evaluator has: "
        "logger = TensorboardLogger('tb/naive')."
    )


def test_a_strategy_without_the_plugin_is_refused(tmp_path):
    logger = TensorboardLogger(tmp_path)
    with pytest.raises(PluginError) as caught:
        add_hparams(logger, make_strategy(tiny_stream(), loggers=[logger]))
    assert str(caught.value).startswith("Naive has no NTKPlugin among its ")


def test_an_untrained_strategy_has_settings_and_no_metrics(tmp_path):
    ntk = NTKPlugin()
    logger = TensorboardLogger(tmp_path)
    add_dashboard(logger, make_strategy(tiny_stream(), plugins=[ntk], loggers=[logger]), regime=None)


@pytest.fixture
def served(tmp_path):
    """Two runs in one folder, and TensorBoard serving it."""
    runs = {}
    for name, epochs in (("short", 2), ("long", 3)):
        logger, strategy, ntk = trained(tmp_path / name, epochs=epochs)
        add_dashboard(logger, strategy, width=8, layers=(1, 2))
        runs[name] = (strategy, ntk)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path), "--host", "127.0.0.1"]
    log = (tmp_path / "served.log").open("wb")
    server = subprocess.Popen(
        [*command, "--port", str(port), "--load_fast", "false"], stdout=log, stderr=log, env={**os.environ}
    )
    try:
        yield f"http://127.0.0.1:{port}/data/plugin", runs
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def wait_for(url, ready, seconds=120):
    """Ask until the server is up and has read the files."""
    end = time.monotonic() + seconds
    while True:
        try:
            found = ask(url)
            if ready(found):
                return found
        except OSError:
            found = "no answer"
        assert time.monotonic() < end, f"TensorBoard did not serve {url} in time; the last answer: {found}"
        time.sleep(0.5)


@pytest.mark.slow
def test_tensorboard_serves_curves_layout_hparams_and_pictures(served):
    base, runs = served
    tags = wait_for(
        f"{base}/scalars/tags",
        lambda t: t.keys() == runs.keys() and all("Summary/distance_init" in v for v in t.values()),
    )
    for name in runs:
        for tag in (
            "NTK_Velocity/train_phase/train_stream/Task000/Exp000",
            "NTK_Spike/train_phase/train_stream/Task000/Exp000",
            "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000",
        ):
            assert tag in tags[name]
    layout = ask(f"{base}/custom_scalars/layout")
    served_layout = {
        c["title"]: {chart["title"]: chart["multiline"]["tag"] for chart in c["chart"]} for c in layout["category"]
    }
    assert served_layout == LAYOUT
    # Every chart of what was measured here finds its curves.
    for category, charts in LAYOUT.items():
        for title, patterns in charts.items():
            unmeasured = re.search(r"layer|Feature|linearised|overlap|Forgetting of the stream", title)
            found = [tag for tag in tags["long"] for pattern in patterns if re.match(pattern, tag)]
            assert bool(found) != bool(unmeasured), (category, title)
    pictures = ask(f"{base}/images/tags")
    assert "NTK_Kernel/train_phase/train_stream/Task000/Exp000" in pictures["long"]
    experiment = ask(f"{base}/hparams/experiment", {"experimentName": ""})
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"Strategy", "Model", "Optimizer", "lr", "momentum", "batch_size", "epochs", "seed", "width"} <= names
    columns = [{"metric": info["name"]} for info in experiment["metricInfos"]]
    question = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "colParams": columns, "sliceSize": 10}
    groups = ask(f"{base}/hparams/session_groups", question)["sessionGroups"]
    assert {group["name"] for group in groups} == {"short", "long"}
    for group in groups:
        strategy, ntk = runs[group["name"]]
        assert (
            group["hparams"]
            | {
                "Strategy": "Naive",
                "epochs": strategy.train_epochs,
                "seed": 7,
                "width": 8,
                "layers": "(1, 2)",
                "momentum": 0.9,
            }
            == group["hparams"]
        )
        values = {v["name"]["tag"]: v["value"] for v in group["metricValues"]}
        boundary = ntk.trajectory.reactivations[1]
        last = strategy.evaluator.get_last_metrics()
        assert values["Summary/accuracy"] == pytest.approx(last["Top1_Acc_Stream/eval_phase/test_stream/Task000"])
        assert values["Summary/largest_spike"] == pytest.approx(boundary.spike, rel=1e-6)
        assert values["Summary/deepest_norm_dip"] == pytest.approx(boundary.norm_dip, rel=1e-6)
        assert values["Summary/distance_init"] == pytest.approx(ntk.trajectory[-1].values["distance_init"], rel=1e-6)
