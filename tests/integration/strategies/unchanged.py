"""Whether training with a plugin is bit for bit the training without it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook


def digest(value: Any) -> str:
    """Hash tensors (every bit, shape and dtype), arrays, and containers of them; anything else by its repr."""
    sha = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, Tensor):
            data = item.detach().cpu().contiguous()
            sha.update(f"{data.dtype}{tuple(data.shape)}".encode())
            sha.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, np.ndarray):
            sha.update(f"{item.dtype}{item.shape}".encode() + item.tobytes())
        elif isinstance(item, dict):
            for key in item:
                sha.update(repr(key).encode())
                feed(item[key])
        elif isinstance(item, (list, tuple)):
            sha.update(f"{type(item).__name__}{len(item)}".encode())
            for part in item:
                feed(part)
        else:
            sha.update(repr(item).encode())

    feed(value)
    return sha.hexdigest()


def generators() -> dict[str, str]:
    """The states of every random number generator that training may draw from."""
    numpy_state = np.random.get_state()
    return {
        "torch generator": digest(torch.get_rng_state()),
        "numpy generator": digest(list(numpy_state)),
        "python generator": digest(random.getstate()),
    }


def fingerprint(strategy: Any) -> dict[str, str]:
    """Everything that a measurement must leave alone, by name: model, optimizer, generators and global modes."""
    model, optimizer = strategy.model, strategy.optimizer
    prints: dict[str, str] = {"model class": type(model).__name__}
    for name, p in model.named_parameters():
        prints[f"parameter {name}"] = digest(p)
        prints[f"gradient {name}"] = digest(p.grad) if p.grad is not None else "none"
        prints[f"requires_grad {name}"] = str(p.requires_grad)
    for name, b in model.named_buffers():
        prints[f"buffer {name}"] = digest(b)
    for name, module in model.named_modules():
        prints[f"training flag {name}"] = str(module.training)
        hooks = [len(getattr(module, h)) for h in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
        prints[f"hooks {name}"] = str(hooks)
    if optimizer is not None:
        index = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
        prints["optimizer state"] = digest([[index.get(id(p), -1), dict(s)] for p, s in optimizer.state.items()])
        prints["optimizer groups"] = digest(
            [
                {k: v for k, v in group.items() if k != "params"} | {"n": len(group["params"])}
                for group in optimizer.param_groups
            ]
        )
    prints["clock"] = str({k: v for k, v in vars(strategy.clock).items() if isinstance(v, int)})
    prints["gradients enabled"] = str(torch.is_grad_enabled())
    prints["default dtype"] = str(torch.get_default_dtype())
    prints["deterministic"] = str(torch.are_deterministic_algorithms_enabled())
    prints["matmul precision"] = torch.get_float32_matmul_precision()
    return prints | generators()


class Recorder(SupervisedPlugin, supports_distributed=True):
    """Keeps what training did: the minibatches and losses in their order, iterations and optimizer steps."""

    def __init__(self) -> None:
        super().__init__()
        self.series: list[str] = []
        self.iterations: list[int] = []
        self.steps: list[int] = []
        self._strategy: Any = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.iterations.append(0)
        self.steps.append(0)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._strategy = strategy
        self.series.append(digest(list(strategy.mbatch)))

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._strategy = None
        self.iterations[-1] += 1
        self.series.append(digest([strategy.loss, strategy.mb_output]))

    def count(self, optimizer: Any, *_: Any) -> None:
        """Count a step of any optimizer in the process that is this strategy's during one of its iterations."""
        if self._strategy is not None and optimizer is self._strategy.optimizer:
            self.steps[-1] += 1


@dataclass
class Run:
    """One training run and what was seen of it."""

    strategy: Any
    recorder: Recorder
    plugins: list[Any]
    prints: list[dict[str, str]] = field(default_factory=list)
    evaluations: list[dict[str, str]] = field(default_factory=list)
    error: BaseException | None = None


@dataclass
class Job:
    """A strategy and what it is trained on; made anew for each run, since some strategies change their experiences."""

    strategy: Any
    experiences: Sequence[Any]
    eval_stream: Any = None
    train_arguments: dict[str, Any] = field(default_factory=dict)


def train(make: Callable[[list[Any]], Job], plugins: Sequence[Any] = ()) -> Run:
    """Seed, make a job with `plugins` and train it on its experiences in turn, evaluating after each.

    An exception ends the run and stands in `Run.error`.
    """
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    recorder = Recorder()
    run = Run(None, recorder, list(plugins))
    handle = register_optimizer_step_post_hook(recorder.count)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            job = make([*plugins, recorder])
            run.strategy = job.strategy
            for experience in job.experiences:
                job.strategy.train(experience, **job.train_arguments)
                run.prints.append(fingerprint(job.strategy))
                if job.eval_stream is not None:
                    results = job.strategy.eval(job.eval_stream)
                    run.evaluations.append({k: digest(v) for k, v in results.items() if not k.startswith("NTK_")})
                    run.prints.append(fingerprint(job.strategy))
    except Exception as error:  # noqa: BLE001  (compared by the caller)
        run.error = error
    finally:
        handle.remove()
    return run


def differences(a: Run, b: Run) -> list[str]:
    """What differs between two runs, in words; empty when they are the same bit for bit."""
    found = []
    if (type(a.error), str(a.error)) != (type(b.error), str(b.error)):
        found.append(f"errors: {a.error!r} and {b.error!r}")
    if len(a.prints) != len(b.prints):
        found.append(f"one run has {len(a.prints)} fingerprints and the other {len(b.prints)}")
    for number, (left, right) in enumerate(zip(a.prints, b.prints, strict=False)):
        keys = [key for key in {**left, **right} if left.get(key) != right.get(key)]
        found += [f"fingerprint {number}: {key}" for key in keys]
    for what in ("series", "iterations", "steps"):
        if getattr(a.recorder, what) != getattr(b.recorder, what):
            found.append(what)
    if a.evaluations != b.evaluations:
        found.append("evaluation results")
    return found


def assert_training_unchanged(make: Callable[[list[Any]], Job], make_plugin: Callable[[], Any]) -> tuple[Run, Run]:
    """Train without the plugin and with it, from the same seed, and assert that nothing differs.

    Args:
        make: Makes a strategy with the given plugins and its experiences; called twice.
        make_plugin: Makes the plugin under test.

    Returns:
        The run without and the run with the plugin.
    """
    without = train(make)
    if without.error is not None:
        raise without.error
    with_plugin = train(make, [make_plugin()])
    if with_plugin.error is not None:
        raise with_plugin.error
    assert differences(without, with_plugin) == []
    assert sum(without.recorder.iterations) > 0
    return without, with_plugin
