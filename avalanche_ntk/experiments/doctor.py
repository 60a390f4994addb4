"""Diagnosis of the installation, with remedies."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

TESTED = {"avalanche-lib": "0.6.0"}


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: Its name.
        state: "ok", "note" (it works; something to know) or "problem".
        found: Description of the finding.
        remedy: What to do; empty if nothing.
    """

    name: str
    state: str
    found: str
    remedy: str = ""


def diagnose(device: str = "cpu") -> list[Finding]:
    """Check this installation.

    Args:
        device: Device on which to compute a kernel as a check.

    Returns:
        The findings; a check that fails is itself reported as a problem.
    """
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                findings += list(check(device))
        except Exception as error:  # noqa: BLE001  (a broken installation fails in every way)
            name = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name, "problem", f"{type(error).__name__}: {error}", "Reinstall the package."))
    return findings


def _python(device: str) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")


def _packages(device: str) -> Iterator[Finding]:
    from packaging.requirements import Requirement

    yield Finding("avalanche-ntk", "ok", metadata.version("avalanche-ntk"))
    for text in metadata.requires("avalanche-ntk") or []:
        requirement = Requirement(text)
        extra = next((e for e in ("export", "cluster") if f'extra == "{e}"' in text), None)
        if requirement.marker is not None and extra is None:
            continue
        name, wanted = requirement.name, str(requirement.specifier)
        install = f"pip install 'avalanche-ntk[{extra}]'" if extra else f"pip install '{name}{wanted}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if extra:
                yield Finding(name, "note", f"not installed (optional, extra {extra!r})", f"If needed: {install}")
            else:
                yield Finding(name, "problem", f"not installed; {wanted or 'any version'} is needed", install)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield Finding(name, "problem", f"{version}; {wanted} is needed", install)
        elif name in TESTED and version != TESTED[name]:
            told = f"{version}; this package is tested with {TESTED[name]}"
            yield Finding(name, "note", told, f"If something fails: pip install '{name}=={TESTED[name]}'")
        else:
            yield Finding(name, "ok", version)


def _device(device: str) -> Iterator[Finding]:
    import torch

    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(n))
    built = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
    if n:
        yield Finding("devices", "ok", f"cpu; {names}; {built}")
    else:
        yield Finding("devices", "note", f"cpu alone; {built}", "A GPU needs a driver that torch's CUDA can use.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    if threads > cores:
        remedy = f"Set OMP_NUM_THREADS={cores}: more threads than cores slow every run down."
        yield Finding("threads", "note", f"torch uses {threads} threads on {cores} cores", remedy)
    else:
        yield Finding("threads", "ok", f"torch uses {threads} threads on {cores} cores")


def _kernel(device: str) -> Iterator[Finding]:
    import torch

    from avalanche_ntk.kernels import empirical_ntk, spot_check
    from avalanche_ntk.lab.models import build_model

    known = ("cpu", *[f"cuda:{i}" for i in range(torch.cuda.device_count())], "cuda", "mps")
    if device not in known:
        yield Finding("kernel", "problem", f"no device {device!r}", f"Use one of {', '.join(known)}.")
        return
    model = build_model("mlp", input_shape=(8,), n_classes=3, width=16, depth=1, seed=0).to(device)
    x = torch.randn(6, 8, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(device)
    error = spot_check(model, x, empirical_ntk(model, x), n_entries=6, seed=0)
    found = f"a small kernel on {device} differs from the reference computation by {error:.1e} (relative)"
    if error < 1e-4:
        yield Finding("kernel", "ok", found)
    else:
        yield Finding("kernel", "problem", found, "Use dtype float64, or another device or version of torch.")


def _avalanche(device: str) -> Iterator[Finding]:
    import torch

    # Imports that every strategy needs.
    importlib.import_module("avalanche.training")
    yield Finding("avalanche", "ok", "its strategies can be imported")
    if "verbose" not in inspect.signature(torch.optim.lr_scheduler.MultiStepLR.__init__).parameters:
        remedy = "Leave BiC out, or use an older torch, which still has the argument."
        yield Finding(
            "BiC", "note", "cannot run: Avalanche calls MultiStepLR(verbose=...), which torch removed", remedy
        )
    if importlib.util.find_spec("timm") is None:
        remedy = (
            "pip install timm for LearningToPrompt with its vision transformers; its small test model runs without."
        )
        yield Finding("timm", "note", "not installed (optional)", remedy)
    if _cannot_pickle_optimizers():
        remedy = "Use avalanche_ntk.adapters.checkpoints.save_checkpoint and load_checkpoint instead of Avalanche's."
        yield Finding("checkpoints", "note", "Avalanche's save_checkpoint fails with this torch and dill", remedy)


def _cannot_pickle_optimizers() -> bool:
    import dill
    import torch

    try:
        dill.dumps(torch.optim.SGD)
    except Exception:  # noqa: BLE001  (that it fails is the finding)
        return True
    return False


def _surroundings(device: str) -> Iterator[Finding]:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if not encoding.startswith("utf"):
        lacking = "which lacks Greek letters and arrows: each is shown as ?"
        found = f"this terminal's encoding is {sys.stdout.encoding}, {lacking}"
        yield Finding("terminal", "note", found, "Set PYTHONIOENCODING=utf-8.")
    if importlib.util.find_spec("functorch") is not None:
        try:
            version = metadata.version("functorch")
        except metadata.PackageNotFoundError:
            pass  # torch's own module of that name
        else:
            found = f"the separate package functorch {version} is installed and can shadow torch's own"
            yield Finding("functorch", "problem", found, "pip uninstall functorch")


_CHECKS: tuple[Callable[[str], Any], ...] = (_python, _packages, _device, _kernel, _avalanche, _surroundings)
