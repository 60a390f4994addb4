"""A probe holds what training is given: what transforms, collate functions and loaders make of the chosen items."""

import warnings
from collections import UserDict

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import TransformGroups, as_classification_dataset
from avalanche.benchmarks.utils.classification_dataset import TaskAwareClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader
from avalanche.training import Naive
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from avalanche_ntk import NTKPlugin, Probe, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.errors import ProbeError, ProbeWarning
from avalanche_ntk.kernels import reference_ntk
from avalanche_ntk.observables import KernelRegression, StaticKernelForecast
from tests.support.lines import make_strategy, run


class Items(Dataset):
    """Item i is `give(i)`; `targets` say what they please."""

    def __init__(self, size, give, targets=None):
        self.size, self.give, self.read = size, give, []
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read.append(index)
        return self.give(index)


def blobs(n=48, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    means = 2 * torch.randn(classes, 6, generator=generator)
    return means[y] + torch.randn(n, 6, generator=generator), y


def avalanche(dataset, targets=None, task=3, **arguments):
    """With task labels, since without them Avalanche trains without the data's collate function."""
    attributes = [TaskLabels([task] * len(dataset))]
    attributes += [] if targets is None else [DataAttribute(targets, "targets")]
    return TaskAwareClassificationDataset([dataset], data_attributes=attributes, **arguments)


def stream(*datasets):
    benchmark = benchmark_from_datasets(train=list(datasets), test=list(datasets))
    return with_task_labels(benchmark) if hasattr(datasets[0], "targets_task_labels") else benchmark


def linear(**arguments):
    torch.manual_seed(1)
    return make_strategy(model=nn.Linear(6, 4), epochs=1, **arguments)


def cka(kernel, rows):
    """The alignment written down: cosine of the centred kernel and the centred `Y Yᵀ`."""
    n = len(kernel)
    h = np.eye(n) - 1 / n
    a, b = h @ kernel.astype(np.float64) @ h, h @ rows @ rows.T @ h
    return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)


# ---------------------------------------------------------------------- labels


def renamed_by_the_dataset(x, y):
    return as_classification_dataset(Items(len(y), lambda i: (x[i], int(y[i]) % 2), y.tolist()))


def renamed_by_a_transform_group(x, y):
    plain = TensorDataset(x, y)
    plain.targets = y.tolist()
    groups = TransformGroups({"train": (None, lambda label: label % 2), "eval": (None, lambda label: label % 2)})
    return as_classification_dataset(plain, transform_groups=groups)


@pytest.mark.parametrize("make", [renamed_by_the_dataset, renamed_by_a_transform_group])
def test_labels_are_those_that_items_give(make):
    x, y = blobs()
    benchmark = stream(make(x, y))
    ntk = NTKPlugin(
        [ProbeSpec(size=12), ProbeSpec(size=12, split="test", seed=1)],
        Schedule.boundaries_only(),
        observe=[KernelRegression()],
        benchmark=benchmark,
        on_error="raise",
    )
    strategy = linear(plugins=[ntk])
    strategy.train(benchmark.train_stream[0])
    probe, held_out = ntk.probes["Exp000"], ntk.probes["Exp000_test"]
    for one in (probe, held_out):
        assert torch.equal(one.x, x[list(one.indices)])
        assert one.y.tolist() == (y[list(one.indices)] % 2).tolist()
        assert torch.bincount(one.y).tolist() == [6, 6]
    rows = np.eye(2)[probe.y]
    last = ntk.trajectory[-1]
    assert last.values["alignment"] == pytest.approx(cka(ntk.trajectory.kernel(last.index), rows), rel=1e-6)
    guessed = strategy.model(held_out.x).argmax(1)
    right = (guessed == y[list(held_out.indices)] % 2).double().mean().item()
    assert last.values["network_accuracy_held_out"] == pytest.approx(right)
    assert ntk.trajectory.labels.tolist() == probe.y.tolist()


def test_classes_are_balanced_by_what_items_give():
    # By the dataset's four targets it would be three of one label for each of the other.
    y = torch.arange(400) % 4
    given = (y == 3).long()
    items = Items(400, lambda i: (torch.tensor([float(i)]), int(given[i])), y.tolist())
    probe = ProbeSpec(size=10).choose(as_classification_dataset(items))
    assert torch.bincount(probe.y).tolist() == [5, 5]
    assert probe.x.flatten().tolist() == [float(i) for i in probe.indices]
    assert given[list(probe.indices)].tolist() == probe.y.tolist()


@pytest.mark.parametrize(
    ("targets", "at_most"),
    [
        (lambda y: y, 8),  # as the items say: no item is read that is not chosen
        (lambda y: [f"class {c}" for c in y], 8),  # other names for the same classes
        (lambda y: [c // 2 for c in y], 8 + 80 + 8),
        (lambda y: None, 80 + 8),
    ],
)
def test_few_items_are_read(targets, at_most):
    y = [i % 4 for i in range(50_000)]
    items = Items(len(y), lambda i: (torch.tensor([float(i)]), y[i]), targets(y))
    probe = ProbeSpec(size=8).choose(items)
    assert torch.bincount(probe.y).tolist() == [2, 2, 2, 2]
    assert [y[i] for i in probe.indices] == probe.y.tolist()
    assert len(items.read) == at_most


def test_the_choice_is_the_same_each_time():
    y = [i % 4 for i in range(1000)]
    items = Items(len(y), lambda i: (torch.tensor([float(i)]), y[i] % 2), y)
    a, b, c = (ProbeSpec(size=8, seed=seed).choose(items) for seed in (0, 0, 1))
    assert a.hash == b.hash != c.hash


FORMS = [
    ("a number", lambda y: 0.5 * y + 0.25, lambda y: 0.5 * y[:, None] + 0.25),
    ("whole numbers that are floats", float, lambda y: y[:, None]),
    ("a row of one", lambda y: torch.tensor([0.5 * y]), lambda y: 0.5 * y[:, None]),
    ("a row of three", lambda y: torch.tensor([y, 2.0, y * y]), lambda y: np.stack([y, 0 * y + 2, y * y], 1)),
    (
        "several classes at once",
        lambda y: torch.tensor([y > 0, y > 1, y > 2]),
        lambda y: np.stack([y > 0, y > 1, y > 2], 1),
    ),
]


@pytest.mark.parametrize(("give", "expected"), [f[1:] for f in FORMS], ids=[f[0] for f in FORMS])
def test_numeric_targets_are_kept_as_items_give_them(give, expected):
    x, y = blobs()
    items = avalanche(Items(len(y), lambda i: (x[i], give(int(y[i])))))
    spec = ProbeSpec(size=12)
    with pytest.warns(ProbeWarning) as caught:
        probe = spec.choose(items)
    assert [str(w.message) for w in caught] == [
        "the samples of probe 'Exp000' have numeric targets and no classes to balance: they were drawn uniformly. "
        'ProbeSpec(balance="none") asks for that.'
    ]
    rows = expected(y[list(probe.indices)].double().numpy()).astype(np.float64)
    assert probe.y.dtype == torch.float64
    np.testing.assert_allclose(probe.y.numpy(), rows, rtol=1e-7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = ProbeSpec(size=12, balance="none").choose(items)
    assert plain.hash == probe.hash
    kernel = reference_ntk(nn.Linear(6, 2), probe.x, dtype=torch.float64, reduction="trace").numpy()
    from avalanche_ntk.measures import kernel_alignment

    assert kernel_alignment(kernel, probe.y) == pytest.approx(cka(kernel, rows), rel=1e-9)


def test_one_hot_rows_are_the_classes_that_they_stand_for():
    x, y = blobs()
    items = Items(len(y), lambda i: (x[i], nn.functional.one_hot(y[i], 4).float()), y.tolist())
    probe = ProbeSpec(size=12).choose(as_classification_dataset(items))
    assert probe.y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] == y[list(probe.indices)].tolist()
    assert len(items.read) == 12


UNUSABLE = [
    (lambda i: (torch.zeros(1), "cat"), "labels must be numbers: classes (N,) or numeric targets (N, K); found text. "),
    (lambda i: (torch.zeros(1), torch.tensor([5, 3, i])), "labels of shape (N, K) are numeric targets; found whole "),
    (lambda i: (torch.zeros(1), torch.zeros(2, 2)), "labels must be classes (N,) or numeric targets (N, K); found an "),
    (lambda i: (torch.zeros(1),), "a probe needs labelled samples: batches (x, y) or (x, y, task labels), or a dict "),
    (lambda i: {"pixels": torch.zeros(1)}, "a probe needs labelled samples: batches (x, y) or (x, y, task labels), or"),
    (
        lambda i: (torch.zeros(1 + i), 0),
        "the samples of the probe cannot be read through the collate function of Items: RuntimeError: stack expects ",
    ),
]


@pytest.mark.parametrize(("give", "message"), UNUSABLE)
def test_what_cannot_be_a_probe_is_refused(give, message):
    with pytest.raises(ProbeError) as caught:
        ProbeSpec(size=4).choose(Items(8, give))
    assert str(caught.value).startswith(message)
    assert ".." not in str(caught.value)


# ---------------------------------------------------------------------- samples


def scaled(batch):
    x, y, *rest = (torch.stack([torch.as_tensor(v) for v in column]) for column in zip(*batch, strict=True))
    return [x / 200, y, *rest]


def test_samples_go_through_the_collate_function():
    x, y = blobs()
    plain = TensorDataset(200 * x, y)
    benchmark = stream(avalanche(plain, y.tolist(), collate_fn=scaled))
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), on_error="raise")
    strategy = linear(plugins=[ntk])
    strategy.train(benchmark.train_stream[0])
    probe = ntk.probes["Exp000"]
    assert torch.equal(probe.x, 200 * x[list(probe.indices)] / 200)
    assert probe.task_labels.tolist() == [3] * 8
    expected = reference_ntk(strategy.model, probe.x, dtype=torch.float64, reduction="trace").numpy()
    np.testing.assert_allclose(ntk.trajectory.kernel(len(ntk.trajectory) - 1), expected, rtol=1e-5)


def padded(batch):
    x = nn.utils.rnn.pad_sequence([item[0] for item in batch], batch_first=True)
    return [x, *(torch.tensor([item[k] for item in batch]) for k in range(1, len(batch[0])))]


class Bag(nn.Module):
    """Mean embedding of the tokens that are no padding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 5, padding_idx=0)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.embedding(x).sum(1) / (x != 0).sum(1, keepdim=True))


def sentences(n=24):
    generator = torch.Generator().manual_seed(0)
    y = [i % 4 for i in range(n)]
    return [torch.randint(1, 9, (2 + i % 5,), generator=generator) for i in range(n)], y


def test_samples_of_different_lengths_are_padded_by_the_data():
    texts, y = sentences()
    benchmark = stream(avalanche(Items(24, lambda i: (texts[i], y[i]), y), y, collate_fn=padded))
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), on_error="raise")
    make = make_strategy(model=Bag(), plugins=[ntk], epochs=1)
    make.train(benchmark.train_stream[0])
    probe = ntk.probes["Exp000"]
    longest = max(len(texts[i]) for i in probe.indices)
    assert probe.x.shape == (8, longest)
    for row, i in zip(probe.x, probe.indices, strict=True):
        assert row.tolist() == texts[i].tolist() + [0] * (longest - len(texts[i]))
    assert np.isfinite(ntk.trajectory.kernel(0)).all()


def test_the_evaluation_transforms_are_used():
    x, y = blobs()
    plain = TensorDataset(x, y)
    plain.targets = y.tolist()
    groups = TransformGroups({"train": (lambda v: 0 * v, lambda c: 9), "eval": (lambda v: v + 1, lambda c: c)})
    benchmark = stream(as_classification_dataset(plain, transform_groups=groups))
    ntk = NTKPlugin(ProbeSpec(size=8), on_error="raise")
    strategy = make_strategy(model=nn.Linear(6, 10), plugins=[ntk], epochs=1)
    strategy.train(benchmark.train_stream[0])
    probe = ntk.probes["Exp000"]
    assert torch.equal(probe.x, x[list(probe.indices)] + 1)
    assert probe.y.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


class OwnLoader(Naive):
    """Loads with a collate function of its own, and takes its batches apart in its own way."""

    def make_eval_dataloader(self, **kwargs):
        self.dataloader = SingleDatasetDataLoader(
            self.adapted_dataset, batch_size=self.eval_mb_size, collate_fn=lambda items: tuple(scaled(items))
        )

    def _unpack_minibatch(self):
        super()._unpack_minibatch()
        self.mbatch[0] = self.mbatch[0] - 3


def test_a_strategy_that_loads_in_its_own_way_is_followed():
    x, y = blobs()
    benchmark = stream(avalanche(TensorDataset(x, y), y.tolist()))
    ntk = NTKPlugin(ProbeSpec(size=8), on_error="raise", observe=[StaticKernelForecast(size=6)])
    strategy = linear(plugins=[ntk], strategy=OwnLoader)
    before = strategy.eval_mb_size
    strategy.train(benchmark.train_stream[0])
    probe = ntk.probes["Exp000"]
    assert torch.equal(probe.x, x[list(probe.indices)] / 200 - 3)
    assert strategy.eval_mb_size == before


class Encoding(UserDict):
    """As a tokenizer's output: a mapping of tensors that moves to a device."""

    def to(self, device, non_blocking=False):
        return Encoding({name: value.to(device) for name, value in self.data.items()})


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, input_ids, attention_mask=None, labels=None):
        weight = attention_mask.unsqueeze(2)
        return self.head((self.embedding(input_ids) * weight).sum(1) / weight.sum(1))


class Whole(Masked):
    def forward(self, encoding):
        return super().forward(**encoding)


def tokenized(batch):
    x = nn.utils.rnn.pad_sequence([item[0] for item in batch], batch_first=True)
    rest = [torch.tensor([item[k] for item in batch]) for k in range(1, len(batch[0]))]
    return [Encoding(input_ids=x, attention_mask=(x != 0).long()), *rest]


def test_inputs_that_a_tokenizer_made_are_taken_as_a_dict():
    texts, y = sentences()
    benchmark = stream(avalanche(Items(24, lambda i: (texts[i], y[i]), y), y, collate_fn=tokenized))
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), on_error="raise")
    model = Whole()
    strategy = make_strategy(model=model, plugins=[ntk], epochs=1)
    strategy.train(benchmark.train_stream[0])
    probe = ntk.probes["Exp000"]
    assert sorted(probe.x) == ["attention_mask", "input_ids"]
    expected = by_autograd(lambda x: model(x), probe.x, model)
    np.testing.assert_allclose(ntk.trajectory.kernel(len(ntk.trajectory) - 1), expected, rtol=1e-4)


def by_autograd(call, x, model):
    """Kernel by one gradient for each sample and output."""
    gradients = []
    for n in range(len(next(iter(x.values())))):
        out = call({name: value[n : n + 1] for name, value in x.items()})[0]
        rows = [torch.autograd.grad(o, list(model.parameters()), retain_graph=True) for o in out]
        gradients.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]))
    j = torch.stack(gradients).double()
    return torch.einsum("ncp,mcp->nm", j, j).numpy()


class OfDicts(Naive):
    """Batches that are dicts, as Avalanche's example for Hugging Face models has them."""

    @property
    def mb_x(self):
        return self.mbatch["input_ids"]

    @property
    def mb_y(self):
        return self.mbatch["labels"]

    @property
    def mb_task_id(self):
        return torch.zeros(len(self.mb_y), dtype=torch.int64)

    def _unpack_minibatch(self):
        self.mbatch = {k: v.to(self.device) if hasattr(v, "to") else v for k, v in self.mbatch.items()}

    def forward(self):
        return self.model(input_ids=self.mb_x, attention_mask=self.mbatch["attention_mask"])


def test_batches_that_are_dicts():
    texts, y = sentences()

    def collate(items):
        x = nn.utils.rnn.pad_sequence([item["input_ids"] for item in items], batch_first=True)
        labels, tasks = (torch.tensor([item[k] for item in items]) for k in ("label", "targets_task_labels"))
        mask = (x != 0).long()
        return {"input_ids": x, "attention_mask": mask, "labels": labels, "targets_task_labels": tasks, "id": ["a"]}

    items = Items(24, lambda i: {"input_ids": texts[i], "label": y[i]}, y)
    benchmark = stream(avalanche(items, y, collate_fn=collate))
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), on_error="raise")
    model = Masked()
    strategy = make_strategy(model=model, plugins=[ntk], epochs=1, strategy=OfDicts)
    strategy.train(benchmark.train_stream[0])
    probe = ntk.probes["Exp000"]
    assert sorted(probe.x) == ["attention_mask", "input_ids"]
    assert probe.y.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert probe.task_labels.tolist() == [3] * 8
    expected = by_autograd(lambda x: model(**x), probe.x, model)
    np.testing.assert_allclose(ntk.trajectory.kernel(len(ntk.trajectory) - 1), expected, rtol=1e-4)
    chosen = ProbeSpec(size=8).choose(benchmark.train_stream[0].dataset)
    assert chosen.y.tolist() == probe.y.tolist()
    assert torch.equal(chosen.x["input_ids"], probe.x["input_ids"])


class OfPairs(Naive):
    def _unpack_minibatch(self):
        self.mbatch = [tuple(self.mbatch[0]), *self.mbatch[1:]]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, pair):
        return self.left(pair[0]) + self.right(pair[1])


def test_inputs_that_are_tuples():
    x, y = blobs()
    items = Items(len(y), lambda i: ((x[i, :4], x[i, 4:]), int(y[i])), y.tolist())
    benchmark = stream(avalanche(items, y.tolist()))
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), on_error="raise")
    make_strategy(model=Pair(), plugins=[ntk], epochs=1, strategy=OfPairs).train(benchmark.train_stream[0])
    probe = ntk.probes["Exp000"]
    i = list(probe.indices)
    assert torch.equal(probe.x[0], x[i, :4])
    assert torch.equal(probe.x[1], x[i, 4:])
    ones = torch.ones(8, dtype=torch.float64)
    # Of a sum of two linear layers with 4 outputs: 4 (<x, x'> + 2), a 1 for each bias.
    expected = 4 * (x[i].double() @ x[i].double().T + 2 * torch.outer(ones, ones))
    np.testing.assert_allclose(ntk.trajectory.kernel(0), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_a_loader_that_fails_is_told_before_training():
    texts, y = sentences()
    benchmark = stream(avalanche(Items(24, lambda i: (texts[i], y[i]), y), y))  # no collate function that pads
    strategy = make_strategy(model=Bag(), plugins=[NTKPlugin(ProbeSpec(size=8))], epochs=1)
    with pytest.raises(ProbeError) as caught:
        strategy.train(benchmark.train_stream[0])
    told = str(caught.value)
    assert told.startswith("the samples of the probe cannot be read through the evaluation data loader of Naive: ")
    assert told.endswith("fix the data, or give the probe's samples with Probe.from_tensors(x, y).")
    assert strategy.clock.train_iterations == 0


# ---------------------------------------------------------------------- given samples


def test_inputs_as_arrays_and_as_a_tokenizers_output():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    probe = Probe.from_tensors(x, np.array([0, 1, 1, 0]))
    assert torch.equal(probe.x, torch.arange(12.0).reshape(4, 3))
    assert probe.hash == Probe.from_tensors(torch.arange(12.0).reshape(4, 3), [0, 1, 1, 0]).hash
    pair = Probe.from_tensors(Encoding(a=torch.ones(2, 3), b=np.zeros(2), unit="cm"), torch.tensor([True, False]))
    assert type(pair.x) is dict and pair.x["unit"] == "cm"
    assert torch.equal(pair.x["b"], torch.zeros(2, dtype=torch.float64))
    assert pair.y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([0.2, 1.7, 0.9, 1.1], [[0.2], [1.7], [0.9], [1.1]]),
        ([0.0, 1.0, 2.0, 1.0], [[0.0], [1.0], [2.0], [1.0]]),
        (np.array([[3], [1], [2], [1]], dtype=np.uint8), [3, 1, 2, 1]),
        ([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], [[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]),
        ([[0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 1, 0]], [2, 0, 0, 1]),
        ([True, False, True, True], [1, 0, 1, 1]),
        ([torch.tensor(2), torch.tensor(0), torch.tensor(1), torch.tensor(1)], [2, 0, 1, 1]),
    ],
)
def test_the_form_of_labels(y, expected):
    probe = Probe.from_tensors(torch.zeros(4, 2), y)
    assert probe.y.tolist() == expected
    assert probe.y.dtype == (torch.int64 if isinstance(expected[0], int) else torch.float64)
    assert probe.describe()["labels"] == expected


GIVEN = [
    (
        dict(x=torch.zeros(2, 1), y=["cat", "dog"]),
        "labels must be numbers: classes (N,) or numeric targets (N, K); found text. Number the classes 0, 1, …, and "
        "give those.",
    ),
    (
        dict(x=torch.zeros(2, 1), y=[[1], [1, 2]]),
        "labels must be numbers: classes (N,) or numeric targets (N, K); found NoneType objects (dtype object). Number "
        "the classes 0, 1, …, and give those.",
    ),
    (
        dict(x=np.array(["a", "b"]), y=[0, 1]),
        "a probe's inputs must be numbers, found an array of dtype <U1. Convert it first.",
    ),
    (
        dict(x=torch.zeros(2, 1), y=[0, 1], task_labels=[0.5, 1.0]),
        "task_labels must be one whole number, or one for each sample; found float64 of shape (2,). Give task_labels=0 "
        "where there are no tasks.",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), GIVEN)
def test_given_samples_that_are_no_numbers(arguments, message):
    with pytest.raises(ProbeError) as caught:
        Probe.from_tensors(**arguments)
    assert str(caught.value) == message


def test_inputs_in_another_precision_are_refused_before_training():
    x, y = blobs()
    benchmark = stream(avalanche(TensorDataset(x, y), y.tolist()))
    ntk = NTKPlugin(Probe.from_tensors(x[:8].double(), y[:8]))
    strategy = linear(plugins=[ntk])
    with pytest.raises(ProbeError) as caught:
        strategy.train(benchmark.train_stream[0])
    assert str(caught.value) == (
        "the inputs of probe 'probe' are torch.float64, the model's parameters torch.float32, and its forward pass "
        "does not convert them. Convert the data: x.to(torch.float32), or a transform that does; training on such "
        "inputs fails too."
    )
    assert strategy.clock.train_iterations == 0


class Converts(nn.Linear):
    def forward(self, x):
        return super().forward(x.float())


def test_a_model_that_converts_its_inputs_is_measured():
    x, y = blobs()
    benchmark = stream(avalanche(TensorDataset(x.double(), y), y.tolist()))
    ntk = NTKPlugin(ProbeSpec(size=8), on_error="raise", spot_check_every=0)
    make_strategy(model=Converts(6, 4), plugins=[ntk], metrics=[ntk_metrics(ntk)], epochs=1).train(
        benchmark.train_stream[0]
    )
    chosen = x[list(ntk.probes["Exp000"].indices)].double()
    expected = 4 * (chosen @ chosen.T + 1)
    np.testing.assert_allclose(ntk.trajectory.kernel(0), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_reading_leaves_the_strategy_as_it_was():
    x, y = blobs()
    benchmark = stream(avalanche(TensorDataset(x, y), y.tolist()))
    seen = {}

    class Watch(NTKPlugin):
        def before_training_exp(self, strategy, **kwargs):
            names = ("adapted_dataset", "dataloader", "eval_mb_size", "mbatch", "experience")
            before = {name: getattr(strategy, name) for name in names}
            state = torch.get_rng_state()
            super().before_training_exp(strategy, **kwargs)
            seen["same"] = all(getattr(strategy, name) is value for name, value in before.items())
            seen["random"] = torch.equal(state, torch.get_rng_state())

    run(linear(plugins=[Watch(ProbeSpec(size=8), on_error="raise")]), benchmark)
    assert seen == {"same": True, "random": True}
