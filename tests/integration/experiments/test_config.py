"""What a configuration says, what it may not say, and where it says it."""

import inspect
import re
from pathlib import Path

import pytest
import torch

import avalanche_ntk
from avalanche_ntk import Schedule
from avalanche_ntk.experiments import ConfigError, RunConfig, load_config, names, ready
from avalanche_ntk.experiments.config import SHORTHANDS, content_hash, resolve
from avalanche_ntk.experiments.schema import describe, parse_document

WRONG = {
    "model:\n  widht: 3\n": "x.yaml, line 2: unknown key 'widht' in model: expected one of 'name', 'width', 'depth', "
    "'parametrisation', 'activation', 'arguments'. Did you mean 'width'?",
    "epochs: 1.5\n": "x.yaml, line 1: epochs must be an integer, found the number 1.5. The default is 5.",
    "\nepochs: five\n": "x.yaml, line 2: epochs must be an integer, found the text 'five'. The default is 5.",
    "epochs: 0\n": "x.yaml, line 1: epochs must be at least 1, found 0. The default is 5.",
    "optimizer:\n  lr: 0\n": "x.yaml, line 2: optimizer.lr must be above 0, found 0.0. The default is 0.1.",
    "optimizer:\n  lr: .inf\n": "x.yaml, line 2: optimizer.lr must be a finite number, found inf. The default is 0.1.",
    "optimizer: {name: adam}\n": "x.yaml, line 1: unknown optimizer.name 'adam': expected one of 'SGD', 'Adam', "
    "'AdamW', 'RMSprop', 'Adagrad'. Did you mean 'Adam'?",
    "device: foo\n": "x.yaml, line 1: unknown device 'foo': expected 'cpu', 'cuda', 'cuda:N', 'mps', 'xpu' or 'xpu:N'. "
    "Leave it out for 'cpu'.",
    "device: cuda:x\n": "x.yaml, line 1: unknown device 'cuda:x': expected 'cpu', 'cuda', 'cuda:N', 'mps', 'xpu' or "
    "'xpu:N'. Leave it out for 'cpu'.",
    "seed: yes\n": "x.yaml, line 1: seed must be an integer, found true. The default is 0.",
    "keep_kernels: 1\n": "x.yaml, line 1: keep_kernels must be true or false, found the number 1. The default is true.",
    "regime: rihc\n": "x.yaml, line 1: unknown regime.name 'rihc': expected one of 'lazy', 'rich', 'ntk', 'centred', "
    "'mean_field'. Did you mean 'rich'?",
    "regime: {}\n": "x.yaml, line 1: regime needs the key 'name', found none. Name of the regime.",
    "regime: lazy\nmodel: null\n": "x.yaml, line 1: a regime builds the model: expected a model, found none (model: "
    "null). Name one, such as mlp, or leave the regime out.",
    "probe:\n- size: 4\n- split: tset\n": "x.yaml, line 3: unknown probe.1.split 'tset': expected one of 'train', "
    "'test'. Did you mean 'test'?",
    "observables: spectrum\n": "x.yaml, line 1: observables must be a list, found the text 'spectrum'. Write [a, b].",
    "observables:\n- spectrum\n- forcast\n": "x.yaml, line 3: unknown observables.1 'forcast': expected one of "
    "'spectrum', 'class_blocks', 'buffer_share', 'features', 'forecast', 'forgetting_forecast', 'per_layer', "
    "'linearisation', 'neurons', 'task_overlap', 'plasticity', 'regression'. Did you mean 'forecast'?",
    "schedule: every_iteration:3\n": "x.yaml, line 1: unknown schedule 'every_iteration': expected one of "
    "'around_boundaries', 'at', 'boundaries_only', 'every_epochs', 'every_iterations', 'log_spaced', "
    "'share_of_training'. Did you mean 'every_iterations'?",
    "benchmark:\n  name: no_shift\n  similarity: 0.5\n": "x.yaml, line 3: benchmark 'no_shift' has no similarity: it "
    "takes classes_per_task, fresh, n_tasks, per_class, seed, task_labels. Leave similarity out.",
    "benchmark: class_overlap\n": "x.yaml, line 1: benchmark 'class_overlap' needs benchmark.similarity, found none. "
    "Give a number from 0 to 1.",
    "model: [mlp]\n": "x.yaml, line 1: model must be a mapping of keys to values, found a list. Write key: value.",
    "- a\n": "x.yaml, line 1: expected a mapping of keys to values, found a list. Write key: value.",
    "epochs: 1\nepochs: 2\n": "x.yaml, line 2: 'epochs' is given twice, first in line 1. Remove one of them.",
    "1: 2\n": "x.yaml, line 1: expected a name as a key, found the number 1. Write a name.",
    "seed: 2020-01-01\n": "x.yaml, line 1: expected text, a number, true, false or null, found '2020-01-01'. Put text "
    "in quotes.",
    "epochs: [1\n": "x.yaml, line 2: this is not YAML (expected ',' or ']', but got '<stream end>'). Correct the line.",
    "a: &a\n  <<: *a\n": "x.yaml, line 2: merge keys (<<) are not supported. Write the values out.",
    "model: &m {name: mlp, arguments: *m}\n": "x.yaml, line 1: the value contains itself by an alias. Write it out.",
    "a: !!python/object/apply:os.system ['true']\n": "x.yaml, line 1: unknown key 'a': expected one of "
    + ", ".join(repr(name) for name in RunConfig.__dataclass_fields__)
    + ".",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=[t.strip().replace("\n", "; ") for t in WRONG])
def test_what_is_not_understood_is_refused_with_its_line(text, message):
    with pytest.raises(ConfigError) as error:
        resolve(parse_document(text, "x.yaml"))
    assert str(error.value) == message


def test_a_wrong_strategy_is_told_with_the_nearest_name():
    with pytest.raises(ConfigError) as error:
        resolve(parse_document("# a comment\nstrategy: naive\n", "x.yaml"))
    listed = ", ".join(map(repr, names.strategies()))
    assert str(error.value) == (
        f"x.yaml, line 2: unknown strategy.name 'naive': expected one of {listed}. Did you mean 'Naive'?"
    )


def test_values_by_dotted_key_replace_and_are_named_in_messages():
    text = "model: cnn\nprobe: 32\nbenchmark: {name: no_shift, n_tasks: 2}\n"
    document = parse_document(text, "x.yaml").with_values(
        {"model.width": 8, "probe.split": "test"}, "--set", SHORTHANDS
    )
    config = resolve(document)
    assert (config.model.name, config.model.width) == ("cnn", 8)
    assert (config.probe.size, config.probe.split) == (32, "test")
    with pytest.raises(ConfigError) as error:
        load_config({"epochs": 3}, {"epochs.x": 1}, called=lambda key: f"--set {key}")
    assert str(error.value) == "--set epochs.x: epochs has no keys, found the number 3. Set epochs itself."
    with pytest.raises(ConfigError) as error:
        load_config(None, {"model.width": "wide"})
    assert str(error.value) == "the value of model.width: model.width must be an integer, found the text 'wide'."


def test_values_cannot_be_set_in_what_has_no_keys():
    with pytest.raises(ConfigError) as error:
        parse_document("- a\n", "x.yaml").with_values({"epochs": 1}, "--set epochs")
    assert str(error.value) == ("x.yaml, line 1: expected a mapping of keys to values, found a list. Write key: value.")


def test_numbers_are_read_as_people_write_them():
    assert resolve(parse_document("optimizer: {lr: 1e-3}\nepochs: 2.0\n")).optimizer.lr == 0.001
    assert resolve(parse_document("epochs: 2.0\n")).epochs == 2
    assert resolve(parse_document("")) == RunConfig()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "none.yaml")
    assert str(error.value) == (
        f"{tmp_path / 'none.yaml'} cannot be read (No such file or directory): expected a YAML file. Check the path."
    )


def test_the_resolved_configuration_makes_the_same_again():
    config = load_config({"strategy": "EWC", "probe": [{"size": 4}, {"size": 5, "split": "test"}], "regime": "rich"})
    again = load_config(config.as_dict())
    assert again == config
    assert again.hash == config.hash


def test_the_hash_is_of_content():
    a = load_config({"model": {"width": 8}, "epochs": 3})
    assert a.hash == load_config({"epochs": 3, "model": {"width": 8, "name": "mlp"}}).hash
    assert a.hash == load_config({"epochs": 3, "model": {"width": 8}, "tensorboard": True}).hash
    others = [{"epochs": 4}, {"model": {"width": 9}}, {"seed": 1}, {"probe": 63}, {"threads": 2}]
    hashes = {load_config({"model": {"width": 8}, "epochs": 3, **other}).hash for other in others}
    assert len(hashes | {a.hash}) == 6
    seeds = {content_hash(load_config({"seed": s}).as_dict(), without=("seed",)) for s in range(3)}
    assert len(seeds) == 1


def test_names_known_without_torch_are_those_of_the_modules():
    from avalanche_ntk.strategies.recipes import RECIPES

    from avalanche_ntk import NTKPlugin, ntk_metrics
    from avalanche_ntk.lab.benchmarks import SHIFTS
    from avalanche_ntk.lab.models import ACTIVATIONS, MODELS
    from avalanche_ntk.lab.regimes import REGIMES

    assert names.strategies() == tuple(RECIPES)
    assert names.models() == tuple(MODELS)
    assert names.activations() == tuple(ACTIVATIONS)
    assert names.regimes() == tuple(REGIMES)
    assert set(names.benchmarks()) == set(SHIFTS)
    assert all(hasattr(torch.optim, name) for name in names.optimizers())
    quiet = {str(metric) for metric in ntk_metrics(NTKPlugin())}
    for flag in names.observables():
        assert {str(metric) for metric in ntk_metrics(NTKPlugin(), **{flag: True})} > quiet
    for name, function in SHIFTS.items():
        taken = set(inspect.signature(function).parameters) - {"data", "frequencies"}
        assert names.BENCHMARK_ARGUMENTS[name] == taken, name
        needed = {p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty} - {"data"}
        assert needed == ({names.REQUIRED_ARGUMENTS[name]} if name in names.REQUIRED_ARGUMENTS else set())


def test_every_key_is_documented_as_it_is():
    text = (Path(avalanche_ntk.__file__).parents[1] / "docs" / "experiments.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+?) \| `?(.+?)`? \| (.+) \|$", text, flags=re.MULTILINE)
    expected = [(name, kind, default, meaning) for name, kind, default, meaning in describe(RunConfig)]
    assert [tuple(row) for row in rows[: len(expected)]] == expected


def test_ready_configurations_are_valid_and_named_in_the_documentation():
    text = (Path(avalanche_ntk.__file__).parents[1] / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert {"split-digits", "sweep-width", "sweep-strategies"} <= set(ready())
    for name in ready():
        assert f"`{name}`" in text
        if not name.startswith("sweep-"):
            Schedule.from_name(load_config(name).schedule)
