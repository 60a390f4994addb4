"""What is run on the stand-in device and on the CPU, in a process of its own: registering a device is for good.

python tests/support/standin_cases.py    # prints one line of JSON: case → what differs
"""

import copy
import json
import sys
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
warnings.simplefilter("ignore")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._pytree import tree_map  # noqa: E402

from avalanche_ntk import NTKPlugin, Probe, ProbeSpec, Schedule, ntk_metrics  # noqa: E402
from avalanche_ntk.kernels import (  # noqa: E402
    empirical_ntk,
    feature_kernel,
    jvp_prediction,
    ntk_operator,
    spot_check,
)
from tests.support import standin  # noqa: E402
from tests.support.lines import differences, fingerprint, make_strategy, run, seed_everything, tiny_stream  # noqa: E402

torch.set_num_threads(1)
THERE = standin.register()


class Last(nn.Module):
    def forward(self, found):
        return found[0][:, -1]


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def cnn():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return model


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Linear(5, 8), layer, Mean(), nn.Linear(8, 3))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), (8, 6)),
    "cnn": (cnn, (6, 2, 8, 8)),
    "transformer": (transformer, (6, 4, 5)),
    "gru": (lambda: nn.Sequential(nn.GRU(5, 6, batch_first=True), Last(), nn.Linear(6, 3)), (8, 4, 5)),
}


def gap(here, there):
    assert there.device.type in (standin.NAME, "cpu")
    there = there.cpu().double()
    return float((there - here.double()).norm() / here.double().norm())


def kernels(name):
    """Return relative differences between the CPU and the other device."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x, x2 = make(), torch.randn(shape), torch.randn(3, *shape[1:])
    other, y, y2 = copy.deepcopy(model).to(THERE), x.to(THERE), x2.to(THERE)
    before = tree_map(lambda t: t.cpu().clone(), dict(other.state_dict()))
    found = {}
    for what, options in {
        "trace": {},
        "full": {"reduction": "full"},
        "sum_logits": {"reduction": "sum_logits"},
        "projected": {"reduction": "projected", "n_projections": 2},
        "float64": {"dtype": torch.float64},
        "blocks": {"block": 2},
        "jacobian": {"method": "jacobian"},
        "loop": {"method": "loop"},
    }.items():
        got, info = empirical_ntk(other, y, return_info=True, **options)
        assert got.device == THERE
        found[what] = gap(empirical_ntk(model, x, **options), got)
        found[what + ", cross"] = gap(empirical_ntk(model, x, x2, **options), empirical_ntk(other, y, y2, **options))
        if what in ("trace", "blocks"):  # by the graph, as on the CPU
            assert not info.reasons and not {"jacobian", "loop"} & set(info.methods.values()), info
    delta = {k: 0.01 * torch.randn_like(p) for k, p in model.named_parameters()}
    moved = jvp_prediction(other, y, {}, {k: v.to(THERE) for k, v in delta.items()})
    found["jvp"] = gap(jvp_prediction(model, x, {}, delta), moved)
    found["features"] = gap(feature_kernel(model, x), feature_kernel(other, y))
    found["operator"] = gap(ntk_operator(model, x).top_eigenvalues(2), ntk_operator(other, y).top_eigenvalues(2))
    found["spot check"] = spot_check(other, y, empirical_ntk(other, y), 4)
    assert not differences(tree_map(lambda t: t.cpu(), dict(other.state_dict())), before)
    return found


def without_addresses():
    """The same for a device whose tensors have no address, as torch_xla's."""
    real, standin.StandIn.data_ptr = standin.StandIn.data_ptr, lambda self: 0
    try:
        return kernels("mlp") | {f"{k} (cnn)": v for k, v in kernels("cnn").items()}
    finally:
        standin.StandIn.data_ptr = real


def trained(device, measured=True):
    seed_everything()
    layers = [nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4)]
    own = Probe.from_tensors(torch.arange(24.0).reshape(4, 6) / 10, [0, 1, 2, 1], name="own")
    ntk = NTKPlugin(
        [ProbeSpec(size=8), ProbeSpec(size=8, split="test"), own], Schedule.every_iterations(2), on_error="raise"
    )
    options = dict(forecast=True, class_blocks=True, features=True, linearisation=True, regression=True)
    strategy = make_strategy(
        model=nn.Sequential(*layers).to(device),
        plugins=[ntk] if measured else [],
        metrics=[ntk_metrics(ntk, per_layer=True, **options)] if measured else [],
        epochs=1,
        device=device,
    )
    run(strategy, tiny_stream())
    return ntk, tree_map(lambda t: t.cpu() if isinstance(t, torch.Tensor) else t, fingerprint(strategy))


CLOCKS = ("seconds", "share", "bytes")


def loop():
    """Return relative differences of all numbers in the trajectories, and bits of training that differ."""
    here, bits = trained(torch.device("cpu"))
    there, same = trained(THERE)
    _, plain = trained(THERE, measured=False)
    assert not differences(same, plain), differences(same, plain)
    assert not differences(same, bits), differences(same, bits)
    assert len(here.trajectories) == 3 and here.trajectories.keys() == there.trajectories.keys()
    found, n = {}, 0
    for name, series in here.trajectories.items():
        assert len(series) == len(there.trajectories[name]) > 3
        for one, two in zip(series, there.trajectories[name], strict=True):
            assert one.values.keys() == two.values.keys() and one.reasons == two.reasons
            assert one.failure is None is two.failure
            for key, value in one.values.items():
                if not any(word in key for word in CLOCKS):
                    n += 1
                    error = abs(two.values[key] - value) / max(abs(value), 1e-6)
                    found[f"{name}/{key}"] = max(found.get(f"{name}/{key}", 0.0), error)
    assert n > 300, n
    return found


def refusals():
    """Return what the device refuses, as another device would: mixed operands, numpy, other devices' generators."""
    x, found = torch.ones(2, 2, device=THERE), {}
    actions = {
        "mixed": lambda: x + torch.ones(2, 2),
        "numpy": lambda: x.numpy(),
        "generator": lambda: torch.randn(2, generator=torch.Generator("cpu"), device=THERE),
        "forward": lambda: nn.Linear(2, 2)(x),
    }
    for name, action in actions.items():
        try:
            action()
        except (RuntimeError, TypeError) as exc:
            found[name] = str(exc).partition("\n")[0]
    x[[1, 0]] += torch.ones(2, 2).to(THERE)
    assert x.cpu().tolist() == [[2, 2], [2, 2]]
    return found


CASES = {name: lambda name=name: kernels(name) for name in MODELS}
CASES |= {"without addresses": without_addresses, "loop": loop, "refusals": refusals}

if __name__ == "__main__":
    results = {}
    for name, case in CASES.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        try:
            results[name] = case()
        except Exception:  # noqa: BLE001 - told by the test
            results[name] = traceback.format_exc()[-3000:]
    print(json.dumps(results))
