"""The kernels of timings/kernels.py by neural-tangents, in a separate Python environment.

    python -m venv jax && jax/bin/pip install neural-tangents "jax[cpu]==0.4.30" "numpy<2" "scipy<1.14"
    python timings/kernels.py --jax-python jax/bin/python

Reads weights, inputs and the exact kernel of the first samples from an .npz file, so that all methods compute the same
kernel of the same function; prints one line of JSON. Compilation time is reported separately.
"""

import json
import os
import sys
import time

threads = int(sys.argv[4])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import neural_tangents as nt  # noqa: E402
import numpy as np  # noqa: E402


def mlp(p, x):
    """Return the logits of Flatten, Linear, ReLU, Linear, ReLU, Linear."""
    x = x.reshape(len(x), -1)
    for i in (1, 3, 5):
        x = x @ p[f"{i}.weight"] + p[f"{i}.bias"]
        x = jax.nn.relu(x) if i < 5 else x
    return x


def conv(x, w, stride, padding):
    """Return a convolution of `(N, C, H, W)`."""
    pad = ((padding, padding), (padding, padding))
    return jax.lax.conv_general_dilated(x, w, (stride, stride), pad, dimension_numbers=("NCHW", "OIHW", "NCHW"))


def resnet18(buffers):
    """Return torchvision's ResNet-18 with a stem for small images and frozen statistics."""

    def norm(p, x, name):
        scale = p[f"{name}.weight"] / jnp.sqrt(buffers[f"{name}.running_var"] + 1e-5)
        shift = p[f"{name}.bias"] - buffers[f"{name}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def f(p, x):
        x = jax.nn.relu(norm(p, conv(x, p["conv1.weight"], 1, 1), "bn1"))
        for layer in (1, 2, 3, 4):
            for block in (0, 1):
                name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
                h = jax.nn.relu(norm(p, conv(x, p[f"{name}.conv1.weight"], stride, 1), f"{name}.bn1"))
                h = norm(p, conv(h, p[f"{name}.conv2.weight"], 1, 1), f"{name}.bn2")
                if f"{name}.downsample.0.weight" in p:
                    x = norm(p, conv(x, p[f"{name}.downsample.0.weight"], stride, 0), f"{name}.downsample.1")
                x = jax.nn.relu(x + h)
        return x.mean((2, 3)) @ p["fc.weight"] + p["fc.bias"]

    return f


def layer_norm(p, x, name):
    """Return torch's LayerNorm over the last dimension."""
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def vit(p, x):
    """Return the logits of timings/kernels.py's ViT."""
    t = conv_patches(x, p["patch.weight"]) + p["patch.bias"]
    t = jnp.concatenate([jnp.broadcast_to(p["cls"], (len(t), 1, t.shape[2])), t], 1) + p["pos"]
    n, length, width = t.shape
    for i in range(6):
        b = f"blocks.layers.{i}"
        h = layer_norm(p, t, f"{b}.norm1") @ p[f"{b}.self_attn.in_proj_weight"] + p[f"{b}.self_attn.in_proj_bias"]
        q, k, v = (z.reshape(n, length, 3, width // 3).transpose(0, 2, 1, 3) for z in jnp.split(h, 3, -1))
        a = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) / (width // 3) ** 0.5, -1) @ v
        a = a.transpose(0, 2, 1, 3).reshape(n, length, width)
        t = t + a @ p[f"{b}.self_attn.out_proj.weight"] + p[f"{b}.self_attn.out_proj.bias"]
        h = layer_norm(p, t, f"{b}.norm2") @ p[f"{b}.linear1.weight"] + p[f"{b}.linear1.bias"]
        t = t + jax.nn.gelu(h, approximate=False) @ p[f"{b}.linear2.weight"] + p[f"{b}.linear2.bias"]
    return t[:, 0] @ p["out.weight"] + p["out.bias"]


def conv_patches(x, w):
    """Return a convolution whose stride is its kernel's size, as `(N, T, width)`."""
    return conv(x, w, w.shape[2], 0).reshape(len(x), len(w), -1).transpose(0, 2, 1)


def high_water():
    """Return the peak memory of this process in MiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def main(path, implementation, limit):
    """Time one implementation."""
    data = np.load(path)
    # weights of linear layers as `x @ w`: a transposition would hide their structure from the rules for it
    params = {k[2:]: jnp.asarray(v.T if v.ndim == 2 else v) for k, v in data.items() if k.startswith("p:")}
    buffers = {k[2:]: jnp.asarray(v) for k, v in data.items() if k.startswith("b:")}
    x, exact = jnp.asarray(data["x"]), data["exact"]
    f = mlp if "1.weight" in params else vit if "cls" in params else resnet18(buffers)
    np.testing.assert_allclose(f(params, x[: len(exact)]), data["outputs"], rtol=1e-3, atol=1e-4)  # the same function
    kernel = nt.empirical_ntk_fn(f, trace_axes=(-1,), vmap_axes=0, implementation=nt.NtkImplementation[implementation])
    kernel = jax.jit(kernel, static_argnums=1)
    few, classes = x[: len(exact)], data["outputs"].shape[1]
    begin = time.perf_counter()
    small = np.asarray(kernel(few, None, params), np.float64) * classes  # the trace there is a mean
    compiling = time.perf_counter() - begin
    error = float(np.linalg.norm(small - exact) / np.linalg.norm(exact))
    begin = time.perf_counter()
    kernel(few, None, params).block_until_ready()
    guess = (time.perf_counter() - begin) * (len(x) / len(few)) ** (2 if "VECTOR" in implementation else 1)
    found = {"error": error, "guess": guess, "compiling": compiling}
    if guess <= limit:
        before = high_water()
        begin = time.perf_counter()
        kernel(x, None, params).block_until_ready()
        found["compiling"] = time.perf_counter() - begin
        seconds, spent = [], 0.0
        while len(seconds) < 3 and spent < limit:
            begin = time.perf_counter()
            kernel(x, None, params).block_until_ready()
            seconds.append(time.perf_counter() - begin)
            spent += seconds[-1]
        found["seconds"] = min(seconds)
        found["peak"] = high_water() - before
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
