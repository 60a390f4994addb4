"""Kernels of this package and other libraries: seconds, peak memory, float32 error, ratio to the floor; minimum times.

    python timings/kernels.py [--models mlp-256-64,vit-8] [--threads 1] [--repeats 5] [--jax-python jax/bin/python]
    python timings/kernels.py --device cuda    # by CUDA events; neural-tangents only on a CPU

Peers: torch.func `vmap(jacrev)` (whole and in chunks), torch.func NTK–vector products (`vjp` then `jvp` on unit
vectors), nngeometry (when installed), and neural-tangents if the Python of an environment with it is given (see
`neural_tangents_peer.py`). All torch methods run in one process, one after the other. The floor is one forward pass, C
signal-only backward passes, and the multiply-adds of the cheaper exact contraction at this machine's own float32 matrix
rate, all measured in the same run. A method expected to take more than `--limit` seconds, from one smaller run, is left
out with a note. Peak memory is that of one call in a separate process, beyond the forward pass.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import clock
import numpy as np
import torch
import torchvision
from torch import nn
from torch.autograd.graph import GradientEdge
from torch.func import functional_call, jacrev, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._guard import known, planning
from avalanche_ntk.kernels._structure.passes import forward


class ViT(nn.Module):
    """Width 192, 6 layers, patches of 4, on 32×32 images."""

    def __init__(self, width=192, depth=6, patch=4):
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, (32 // patch) ** 2 + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 3, 4 * width, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.out = nn.Linear(width, 10)

    def forward(self, x):
        """Logits of the class token."""
        t = self.patch(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.cls.expand(len(t), -1, -1), t], 1) + self.pos
        return self.out(self.blocks(t)[:, 0])


def mlp(width):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def resnet18(outputs=10):
    model = torchvision.models.resnet18(num_classes=outputs)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


MODELS = {
    "mlp-256-64": (lambda: mlp(256), 64),
    "mlp-256-256": (lambda: mlp(256), 256),
    "mlp-1024-64": (lambda: mlp(1024), 64),
    "resnet18-8": (resnet18, 8),
    "resnet18-16": (resnet18, 16),
    "resnet18-64": (resnet18, 64),
    "resnet18-c100-32": (lambda: resnet18(100), 32),
    "vit-8": (ViT, 8),
    "vit-16": (ViT, 16),
    "vit-64": (ViT, 64),
}


def by_jacrev(model, x, chunk):
    params = {k: p.detach() for k, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def one(theta, sample):
        return functional_call(model, (theta, buffers), (sample[None],))[0]

    with sdpa_kernel(SDPBackend.MATH):
        jac = vmap(jacrev(one), (None, 0), chunk_size=chunk)(params, x)
    total = 0
    for j in jac.values():
        flat = j.reshape(len(x), -1)
        total = total + flat @ flat.T
    return total


def by_vector_products(model, x):
    params = {k: p.detach() for k, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def f(sample):
        return lambda theta: functional_call(model, (theta, buffers), (sample[None],))[0]

    def pair(a, b):
        out, pull = vjp(f(a), params)
        eye = torch.eye(len(out))
        return vmap(lambda v: v @ jvp(f(b), (params,), pull(v))[1])(eye).sum()

    with sdpa_kernel(SDPBackend.MATH):
        return vmap(vmap(pair, (None, 0)), (0, None))(x, x)


def by_nngeometry(model, x):
    from nngeometry.gram import GramMatrix
    from nngeometry.layercollection import LayerCollection
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=len(x))
    layers = LayerCollection.from_model(model)
    gram = GramMatrix(model, loader, function=lambda *d: model(d[0]), layer_collection=layers)
    return gram.to_torch().diagonal(dim1=0, dim2=2).sum(-1)


def best(call, repeats, limit):
    """Minimum seconds of several calls within a time limit."""
    found, spent = [], 0.0
    for _ in range(repeats):
        found.append(clock.seconds(call, torch.get_default_device()))
        spent += found[-1]
        if spent > limit:
            break
    return min(found)


def matrix_rate():
    """Float32 multiply-adds per second of a large product."""
    a = torch.randn(1500, 1500)
    return 1500**3 / best(lambda: a @ a, 5, 10)


def signals_only(model, x):
    """C backward passes for the signals at all uses of parameters, without a weight gradient, as a function to time."""
    subject = Subject.of(model)
    batch = Batch.of(x)
    at = forward(subject, batch)
    plan = known.plan_of(subject, batch, at) or planning.new_plan(subject, batch, at, None)
    edges = [GradientEdge(at.graph.nodes[i], nr) for i, nr in plan.edges()]

    def run():
        for c in range(at.out.shape[1]):
            torch.autograd.grad(at.out[:, c].sum(), edges, retain_graph=True)

    return run


def linear_layers(model):
    """The layers of an MLP whose activations are ReLU; refuses other models."""
    layers = [m for m in model if isinstance(m, nn.Linear)]
    if not layers or any(not isinstance(m, nn.Linear | nn.ReLU | nn.Flatten) for m in model):
        raise TypeError("written for MLPs with ReLU")
    return layers


def by_hand(model, x):
    """Hand-written code for an MLP: a forward pass, autograd's signals of all outputs at once, Gram products."""
    layers = linear_layers(model)
    inputs, outputs, h = [], [], x.flatten(1)
    for i, layer in enumerate(layers):
        inputs.append(h)
        h = layer(h)
        outputs.append(h)
        h = torch.relu(h) if i < len(layers) - 1 else h
    cot = torch.eye(h.shape[1])[:, None].expand(-1, *h.shape)
    signals = torch.autograd.grad(h, outputs, cot, is_grads_batched=True)
    with torch.no_grad():
        total = torch.zeros(len(x), len(x))
        for a, g in zip(inputs, signals, strict=True):
            g = g.transpose(0, 1).flatten(1)
            total += (a @ a.T + 1) * (g @ g.T)
    return total


@torch.no_grad()
def by_closed_form(model, x):
    """The same without autograd: signals from the last layer back, by the chain rule."""
    layers = linear_layers(model)
    inputs, masks, h = [], [], x.flatten(1)
    for i, layer in enumerate(layers):
        inputs.append(h)
        h = layer(h)
        if i < len(layers) - 1:
            masks.append(h > 0)
            h = h.relu()
    n, c = h.shape
    total = torch.zeros(n, n)
    g = torch.eye(c).expand(n, c, c)
    for i in range(len(layers) - 1, -1, -1):
        flat = g.reshape(n, -1)
        total += (inputs[i] @ inputs[i].T + 1) * (flat @ flat.T)
        if i:
            g = (g.reshape(n * c, -1) @ layers[i].weight).view(n, c, -1) * masks[i - 1][:, None]
    return total


PROJECTED = {"reduction": "projected", "n_projections": 8}
ESTIMATES = ("ours, sum_logits", "ours, projected (r = 8)")  # other kernels: no error against the trace kernel
WAYS = {
    "ours": empirical_ntk,
    "by hand (autograd)": by_hand,
    "by hand (closed form)": by_closed_form,
    "ours, projected (r = 8)": partial(empirical_ntk, **PROJECTED),
    "ours, sum_logits": partial(empirical_ntk, reduction="sum_logits"),
    "torch.func vmap(jacrev)": partial(by_jacrev, chunk=None),
    "torch.func jacrev, chunks of 8": partial(by_jacrev, chunk=8),
    "torch.func jacrev, one by one": partial(by_jacrev, chunk=1),
    "torch.func NTK-vector products": by_vector_products,
    "nngeometry 0.4": by_nngeometry,
}
NEURAL_TANGENTS = {
    "neural-tangents, Jacobian contraction": "JACOBIAN_CONTRACTION",
    "neural-tangents, NTK-vector products": "NTK_VECTOR_PRODUCTS",
    "neural-tangents, structured derivatives": "STRUCTURED_DERIVATIVES",
}


def build(name):
    """Return the model in eval mode and its inputs."""
    make, n = MODELS[name]
    torch.manual_seed(0)
    return make().eval(), torch.randn(n, 3, 32, 32)


def projection_error(model, x):
    """Median relative error of entries of the projected kernel against the trace kernel, over entries and seeds."""
    want = empirical_ntk(model, x)
    found = [empirical_ntk(model, x, seed=s, **PROJECTED) for s in range(5)]
    return float(torch.stack([(k - want).abs() / want.abs() for k in found]).median())


def high_water():
    """Return the peak memory of this process in MiB (`ru_maxrss` would begin with its parent's)."""
    if torch.get_default_device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak_here(name, way, threads, device):
    """Print by how many MiB one call raises this process's peak memory above that of a forward pass."""
    torch.set_num_threads(threads)
    torch.set_default_device(device)
    model, x = build(name)
    model(x)
    before = high_water()
    WAYS[way](model, x)
    print(high_water() - before)


def peak_of(name, way, threads):
    """Return the result of `peak_here` in a separate process, as text."""
    command = [sys.executable, __file__, "--peak", name, way, "--threads", str(threads)]
    command += ["--device", str(torch.get_default_device())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{float(done.stdout.split()[-1]):.0f}" if done.returncode == 0 else "did not fit"


def by_neural_tangents(python, model, x, exact, implementation, threads, limit):
    """Return the output of `neural_tangents_peer.py`."""
    arrays = {f"p:{k}": v.detach().numpy() for k, v in model.named_parameters()}
    arrays |= {f"b:{k}": v.numpy() for k, v in model.named_buffers()}
    with torch.no_grad():
        outputs = model(x[: len(exact)]).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.npz"
        np.savez(path, x=x.numpy(), exact=exact.numpy(), outputs=outputs, **arrays)
        script = str(Path(__file__).with_name("neural_tangents_peer.py"))
        command = [python, script, str(path), implementation, str(limit), str(threads)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=5 * limit, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
        raise RuntimeError(said[-1] if said else f"ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name, repeats, limit, threads, jax_python):
    model, x = build(name)
    n = len(x)
    few = min(n, 4)
    exact = empirical_ntk(model, x[:few], dtype=torch.float64, method="jacobian")
    info = None

    def first_call():
        nonlocal info
        _, info = empirical_ntk(model, x, return_info=True)

    cold = clock.seconds(first_call, torch.get_default_device())
    rivals = {way: partial(call, model) for way, call in WAYS.items()}
    rows = []

    def step():
        loss = nn.functional.cross_entropy(model(x), torch.zeros(n, dtype=torch.long))
        torch.autograd.grad(loss, list(model.parameters()))

    floor = {
        "forward": best(lambda: model(x), repeats, limit),
        "signals": best(signals_only(model, x), repeats, limit),
        "contraction": info.flops / matrix_rate(),
    }
    training = best(step, repeats, limit)
    total = sum(floor.values())
    results = {}
    for rival, call in rivals.items():
        try:
            start = time.perf_counter()
            small = call(x[:few]).detach()
            small.sum().item()  # waits for it
            first = time.perf_counter() - start
            error = float((small.double() - exact).norm() / exact.norm()) if rival not in ESTIMATES else float("nan")
            power = 2 if rival.endswith("products") else 1
            start = time.perf_counter()
            call(x[:few]).sum().item()
            guess = min(first, time.perf_counter() - start) * (n / few) ** power
            if guess > limit and not rival.startswith("ours"):
                results[rival] = (None, error, f"left out: about {guess:.0f} s from {few} samples")
                continue
            del first, small
            results[rival] = (best(partial(call, x), repeats, limit), error, "")
        except Exception as exc:  # noqa: BLE001 - a rival that cannot do a model is a line of the table
            results[rival] = (None, float("nan"), f"refuses: {type(exc).__name__}: {str(exc)[:60]}")
    again = best(lambda: empirical_ntk(model, x), repeats, limit)  # once more at the end: the machine is shared
    ours = min(results["ours"][0], again)
    peaks = {rival: peak_of(name, rival, threads) for rival, found in results.items() if found[0] is not None}
    for rival, implementation in NEURAL_TANGENTS.items() if jax_python else ():
        try:
            found = by_neural_tangents(jax_python, model, x, exact, implementation, threads, limit)
            note = f"compiled in {found['compiling']:.2g} s"
            if "seconds" not in found:
                note = f"left out: about {found['guess']:.0f} s from {few} samples"
            results[rival] = (found.get("seconds"), found["error"], note)
            peaks |= {rival: f"{found['peak']:.0f}"} if "peak" in found else {}
        except (RuntimeError, subprocess.TimeoutExpired) as exc:
            results[rival] = (None, float("nan"), f"fails: {str(exc)[:80]}")
    for rival, (seconds, error, note) in results.items():
        seconds = ours if rival == "ours" else seconds
        rows.append(
            {
                "model": name,
                "way": rival,
                "seconds": "" if seconds is None else f"{seconds:.4g}",
                "peak MiB": peaks.get(rival, ""),
                "float32 error (first samples)": "" if error != error else f"{error:.1e}",
                "times ours": "" if seconds is None else f"{seconds / ours:.3g}",
                "times the floor": "" if seconds is None else f"{seconds / total:.3g}",
                "note": note,
            }
        )
    parts = ", ".join(f"{k} {v:.4g}" for k, v in floor.items())
    note = f"{parts}; first call (with its plan) {cold:.3g} s; a training step {training:.4g} s"
    if "c100" in name:
        note += f"; median relative error of projected entries {projection_error(model, x):.2%}"
    blank = dict.fromkeys(rows[0], "")
    known = {"seconds": f"{total:.4g}", "times ours": f"{total / ours:.3g}", "times the floor": "1", "note": note}
    rows.append(blank | {"model": name, "way": "floor"} | known)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--jax-python", help="Python of an environment that has neural-tangents")
    parser.add_argument("--out", type=Path, default=Path("timings/results"))
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "WAY"), help="print the peak of one way (used inside)")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    args = parser.parse_args()
    if args.peak:
        return peak_here(*args.peak, args.threads, args.device)
    torch.set_default_device(args.device)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*torch.jit.*")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.models.split(","):
        rows += measure(name, args.repeats, args.limit, args.threads, args.jax_python)
        head = list(rows[0])
        with (args.out / "kernels.csv").open("w", newline="") as f:
            writer = csv.DictWriter(f, head)
            writer.writeheader()
            writer.writerows(rows)
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(r[h] for h in head) + " |" for r in rows]
        title = f"{clock.name(args.device)}, {args.threads} thread(s), torch {torch.__version__}\n\n"
        (args.out / "kernels.md").write_text(title + "\n".join(lines) + "\n")
    print((args.out / "kernels.md").read_text())


if __name__ == "__main__":
    main()
