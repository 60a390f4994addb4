"""Steps are counted as they happen where an optimizer tells of them, and by iterations where it does not."""

import gc
import weakref
from collections import OrderedDict, defaultdict

import pytest
import torch
from avalanche.training import Naive

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.steps import StepCounter, described
from tests.support.lines import differences, make_strategy, run, seed_everything, step_hooks, tiny_stream


class Lookahead(torch.optim.Optimizer):
    """Steps of another optimizer, and every k-th one a step back; as timm's, it never calls the base class."""

    def __init__(self, base, alpha=0.5, k=3):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self.base, self.alpha, self.k, self.calls = base, alpha, k, 0
        self.param_groups, self.defaults = base.param_groups, base.defaults
        self.slow = {}

    @property
    def state(self):
        return self.base.state

    @state.setter
    def state(self, value):
        self.base.state = value

    @torch.no_grad()
    def step(self, closure=None):
        self.base.step()
        self.calls += 1
        if self.calls % self.k == 0:
            for group in self.param_groups:
                for p in group["params"]:
                    slow = self.slow.setdefault(p, p.clone())
                    slow.add_(p - slow, alpha=self.alpha)
                    p.copy_(slow)

    def zero_grad(self, set_to_none=True):
        self.base.zero_grad(set_to_none)


class Private(torch.optim.Optimizer):
    """Clipped gradients with noise; as Opacus', it wraps another one and has no place for hooks."""

    def __init__(self, original):
        self.original_optimizer = original
        self.generator = torch.Generator().manual_seed(5)

    param_groups = property(lambda self: self.original_optimizer.param_groups)
    defaults = property(lambda self: self.original_optimizer.defaults)

    @property
    def state(self):
        return self.original_optimizer.state

    @state.setter
    def state(self, value):
        self.original_optimizer.state = value

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.clamp_(-1, 1).add_(1e-3 * torch.randn(p.shape, generator=self.generator))
        self.original_optimizer.step()

    def zero_grad(self, set_to_none=True):
        self.original_optimizer.zero_grad(set_to_none)


class Sharp(torch.optim.Optimizer):
    """Sharpness-aware minimisation as it is usually written: it calls the base class, and has a base optimizer."""

    def __init__(self, params, rho=0.05, **arguments):
        super().__init__(params, {"rho": rho, **arguments})
        self.base_optimizer = torch.optim.SGD(self.param_groups, **arguments)
        self.param_groups = self.base_optimizer.param_groups
        self.uphill = {}

    @torch.no_grad()
    def first_step(self):
        every = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in every]).norm()
        self.uphill = {p: 0.05 * p.grad / norm for p in every}
        for p, e in self.uphill.items():
            p.add_(e)

    @torch.no_grad()
    def second_step(self):
        for p, e in self.uphill.items():
            p.sub_(e)
        self.base_optimizer.step()

    def step(self, closure=None):
        self.first_step()
        self.second_step()


class TwoSteps(Naive):
    """How Sharp is used without a closure: its own `step` is never called."""

    def optimizer_step(self):
        self.optimizer.first_step()
        self._criterion(self.model(self.mb_x), self.mb_y).backward()
        self.optimizer.second_step()


class Bare:
    """Nothing but a step and zero_grad."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    @torch.no_grad()
    def step(self):
        for p in self.parameters:
            p -= 0.05 * p.grad

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None


class Delegating:
    """Hands everything that it does not have to the optimizer inside."""

    def __init__(self, base):
        self.__dict__["base"] = base

    def __getattr__(self, name):
        return getattr(self.base, name)

    def step(self):
        self.base.step()


class Fixed(Naive):
    """A strategy that leaves its optimizer as it is, as one must whose optimizer has no parameter groups."""

    def make_optimizer(self, **kwargs):
        self.optimized_param_id = {}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


OPTIMIZERS = {
    "Lookahead": (lambda model: Lookahead(sgd(model)), [0.05]),
    "differentially private": (lambda model: Private(sgd(model)), [0.05]),
    "bare": (lambda model: Bare(model.parameters()), None),
    "delegating": (lambda model: Delegating(sgd(model)), [0.05]),
}


def trained(make_optimizer, folder=None, measured=True, cls=Fixed):
    seed_everything()
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), run_folder=folder, on_error="raise")
    strategy = make_strategy(
        strategy=cls, plugins=[ntk] if measured else [], metrics=[ntk_metrics(ntk)] if measured else []
    )
    strategy.optimizer = make_optimizer(strategy.model)
    run(strategy, tiny_stream())
    return ntk, {name: value.clone() for name, value in strategy.model.state_dict().items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_does_not_tell_of_its_steps_makes_one_an_iteration(name, tmp_path):
    make, rates = OPTIMIZERS[name]
    _, alone = trained(make, measured=False)
    ntk, together = trained(make, tmp_path / "run")
    assert differences(alone, together) == []
    # 24 samples, batches of 8, two epochs, two tasks.
    assert [m.clock.iteration for m in ntk.trajectory][-1] == 12
    assert [m.clock.optimizer_step for m in ntk.trajectory] == [m.clock.iteration for m in ntk.trajectory]
    values = ntk.trajectory[3].values
    assert values["velocity_per_step"] == values["velocity_per_iteration"] > 0
    kind = type(make(torch.nn.Linear(1, 1))).__name__
    note = f"each iteration counts as one optimizer step: {kind} does not report its steps"
    assert [(m.clock.event, m.notes) for m in ntk.trajectory if m.notes] == [("experience_start", (note,))] * 2
    assert RunFolder.open(tmp_path / "run").meta["optimizer"] == {"name": kind, "learning_rate": rates}


@pytest.mark.parametrize("cls", [Fixed, TwoSteps])
def test_a_step_within_a_step_is_one(cls):
    def sharp(model):
        return Sharp(model.parameters(), lr=0.05)

    _, alone = trained(sharp, measured=False, cls=cls)
    ntk, together = trained(sharp, cls=cls)
    assert differences(alone, together) == []
    assert [m.clock.optimizer_step for m in ntk.trajectory] == [m.clock.iteration for m in ntk.trajectory]
    assert not any(m.notes for m in ntk.trajectory)


def test_a_strategy_without_an_optimizer_makes_no_steps():
    class Still(Fixed):
        def training_epoch(self, **kwargs):
            for minibatch in self.dataloader:
                self.mbatch = minibatch
                self._unpack_minibatch()
                self._before_training_iteration(**kwargs)
                self._after_training_iteration(**kwargs)

    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(2), on_error="raise")
    strategy = make_strategy(strategy=Still, plugins=[ntk])
    strategy.optimizer = None
    strategy.train(tiny_stream().train_stream[0])
    assert [(m.clock.iteration, m.clock.optimizer_step) for m in ntk.trajectory] == [(i, 0) for i in (0, 2, 4, 6, 6)]
    assert not any(m.notes or "velocity_per_step" in m.values for m in ntk.trajectory)


def test_steps_of_an_optimizer_that_takes_the_place_of_another():
    model = torch.nn.Linear(2, 1)
    first, second, bare = sgd(torch.nn.Linear(2, 1)), sgd(model), Bare(model.parameters())
    counter = StepCounter()

    def step(optimizer):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    counter.follow(first)
    step(first), step(first), counter.iteration()
    assert (counter.count, counter.by_iterations) == (2, False)
    counter.follow(second)
    step(first), step(second), counter.iteration()
    assert counter.count == 3
    counter.follow(bare)
    step(bare), step(bare), counter.iteration()
    assert (counter.count, counter.by_iterations) == (4, True)
    counter.follow(None)
    counter.iteration()
    assert (counter.count, counter.note) == (4, [])
    counter.follow(first)
    step(first)
    assert counter.count == 5
    counter.leave()
    step(first)
    assert counter.count == 5


def test_other_optimizers_and_interrupted_steps_do_not_count():
    model, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    mine, theirs = sgd(model), sgd(other)
    counter = StepCounter()
    counter.follow(mine)

    def fails():
        raise KeyboardInterrupt

    theirs.step()
    with pytest.raises(KeyboardInterrupt):
        mine.step(fails)
    counter.follow(mine)  # as at the beginning of each iteration
    mine.step()
    assert counter.count == 1


def test_a_run_that_was_broken_off_leaves_nothing_behind():
    gc.collect()  # what other tests left is not counted
    before = step_hooks()
    trained(sgd)
    assert step_hooks() == before
    counter = StepCounter()
    optimizer = sgd(torch.nn.Linear(2, 1))
    counter.follow(optimizer)
    assert step_hooks() == before + 2
    alive = weakref.ref(counter)
    del counter
    gc.collect()
    assert alive() is None
    assert step_hooks() == before
    optimizer.step()


def test_learning_rates_of_any_form():
    parameter = torch.nn.Parameter(torch.zeros(1))
    tensor = torch.optim.Adam([parameter], lr=torch.tensor(0.25), capturable=False)
    assert described(tensor) == {"name": "Adam", "learning_rate": [0.25]}
    groups = Bare([])
    groups.param_groups = [{"lr": "fast"}, {}, {"lr": 0.5}, None]
    assert described(groups) == {"name": "Bare", "learning_rate": [None, None, 0.5, None]}
    groups.param_groups = defaultdict(list)
    assert described(groups) == {"name": "Bare", "learning_rate": None}
    assert described(None) is None
