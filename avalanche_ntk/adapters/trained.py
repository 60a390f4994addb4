"""The trained function of models that compute another function in eval mode.

Some of Avalanche's models switch in eval mode to a nearest-mean classifier without a gradient, or to another expert.
The kernel is that of the function whose parameters the optimizer moves, so a measurement uses that function, with all
else in eval mode.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from avalanche.models import SCRModel, TrainEvalModel
from avalanche.models.expert_gate import ExpertGate
from avalanche.models.packnet import PackNetModule
from torch import nn


@contextmanager
def trained_function(model: nn.Module) -> Generator[None]:
    """Make `model` in eval mode compute its training function; everything is restored on exit.

    Known models: `TrainEvalModel` (iCaRL) and `SCRModel` use their training head in place of the nearest-mean
    classifier, `ExpertGate` the expert being trained, and a PackNet after pruning may be asked for an earlier task.
    Other models are left alone.

    Args:
        model: The strategy's model.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, (TrainEvalModel, SCRModel)):
                stack.enter_context(_training_head(module))
            elif isinstance(module, ExpertGate):
                stack.enter_context(_current_expert(module))
        if any(isinstance(m, PackNetModule) and m.state is m.State.POST_PRUNE for m in model.modules()):
            stack.enter_context(_finished_pruning(model))
        yield


@contextmanager
def _training_head(module: Any) -> Generator[None]:
    head = module.eval_classifier
    # Set in the dict itself, which keeps the order of submodules and so of parameters.
    module._modules["eval_classifier"] = module.train_classifier
    try:
        yield
    finally:
        module._modules["eval_classifier"] = head


@contextmanager
def _current_expert(gate: Any) -> Generator[None]:
    # Looked up at the call, so that substituted parameters are used.
    gate.__dict__["forward"] = lambda x: gate.expert(x)
    try:
        yield
    finally:
        del gate.__dict__["forward"]


@contextmanager
def _finished_pruning(model: nn.Module) -> Generator[None]:
    """Let PackNet switch tasks while it is fine-tuning, which its own state machine refuses."""
    states = [(m._state, int(m._state)) for m in model.modules() if isinstance(m, PackNetModule)]
    with torch.no_grad():
        for state, _ in states:
            state.fill_(PackNetModule.State.EVAL.value)
    try:
        yield
    finally:
        with torch.no_grad():
            for state, value in states:
                state.fill_(value)
