"""Shifts: which samples and labels each experience holds, worked out from data whose inputs are their own numbers."""

import inspect
import itertools
import json
import pickle
import stat
import struct
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchvision
from avalanche.benchmarks import CLScenario
from avalanche_ntk.strategies.recipes import build
from PIL import Image
from torch import nn
from torchvision.transforms.functional import InterpolationMode, rotate

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.lab.benchmarks import (
    SHIFTS,
    LabelledData,
    blurred,
    class_frequency_shift,
    class_incremental,
    class_overlap_shift,
    images,
    label_permuted,
    load_data,
    no_shift,
    permuted,
    reachable_similarities,
    rotated,
    split_digits,
)
from avalanche_ntk.lab.benchmarks.data import standardised
from tests.support.places import ROOT

CIFAR = ROOT.parent / "shared" / "data" / "cifar10-subset.zip"


def message(call) -> str:
    with pytest.raises(ArgumentError) as error:
        call()
    return str(error.value)


def numbered(n_classes=6, per_class=8, test_per_class=3) -> LabelledData:
    """Input i is the number i; test inputs are negative."""
    y = torch.arange(n_classes).repeat(per_class)
    y_test = torch.arange(n_classes).repeat(test_per_class)
    x = torch.arange(len(y)).float()[:, None]
    x_test = -1 - torch.arange(len(y_test)).float()[:, None]
    return LabelledData.from_tensors(x, y, x_test, y_test, name="numbers")


def samples(experience) -> list[tuple[int, int]]:
    """Number and label of each sample, in order, as training reads them."""
    return [(int(row[0]), int(row[1])) for row in experience.dataset]


def numbers(experience) -> set[int]:
    return {n for n, _ in samples(experience)}


def per_class(experience) -> dict[int, int]:
    labels = [y for _, y in samples(experience)]
    return {c: labels.count(c) for c in sorted(set(labels))}


# What every shift keeps


CALLS = {
    "blurred": {"classes_per_task": 2, "steps": 1},
    "class_frequency": {"alpha": 0.5, "imbalance": 2.0},
    "class_incremental": {"classes_per_task": 2},
    "class_overlap": {"similarity": 0.2, "classes_per_task": 3},
    "label_permuted": {},
    "no_shift": {},
    "permuted": {},
    "rotated": {},
}


def call(name, **further):
    data = "digits" if name in ("permuted", "rotated") else numbered(per_class=12)
    return SHIFTS[name](data, **CALLS[name], **further)


def content(benchmark):
    return [
        [(tuple(x.flatten().tolist()), int(y), int(t)) for x, y, t in e.dataset]
        for stream in (benchmark.train_stream, benchmark.test_stream)
        for e in stream
    ]


@pytest.mark.parametrize("name", sorted(SHIFTS))
def test_a_standard_benchmark_with_equal_tasks_and_a_description(name):
    benchmark = call(name)
    assert isinstance(benchmark, CLScenario)
    assert len(benchmark.train_stream) == len(benchmark.test_stream) == benchmark.n_experiences
    assert len({len(e.dataset) for e in benchmark.train_stream}) == 1
    for stream in (benchmark.train_stream, benchmark.test_stream):
        seen = set()
        for number, experience in enumerate(stream):
            assert experience.current_experience == number
            assert experience.origin_stream is stream and stream.benchmark is benchmark
            targets = [int(y) for _, y, _ in experience.dataset]
            assert [int(y) for y in experience.dataset.targets] == targets
            assert experience.classes_in_this_experience == sorted(set(targets))
            assert experience.previous_classes == sorted(seen)
            seen |= set(targets)
            assert experience.classes_seen_so_far == sorted(seen)
            assert experience.task_label == 0 and experience.task_labels == [0]
    description = benchmark.description
    assert description.kind == name
    assert str(description) == description.sentence and description.sentence.endswith(".")
    stored = json.loads(json.dumps(description.to_dict()))
    assert stored["kind"] == name and stored["seed"] == 0
    # The classes that it names are those in the training stream.
    assert [sorted(c) for c in stored["classes"]] == [e.classes_in_this_experience for e in benchmark.train_stream]


@pytest.mark.parametrize("name", sorted(SHIFTS))
def test_seeded_and_without_touching_other_generators(name):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, again, other = content(call(name)), content(call(name)), content(call(name, seed=1))
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", sorted(set(SHIFTS) - {"blurred"}))
def test_task_labels_when_asked_for(name):
    benchmark = call(name, task_labels=True)
    assert [e.task_label for e in benchmark.train_stream] == list(range(len(benchmark.train_stream)))
    assert {t for _, _, t in benchmark.train_stream[1].dataset} == {1}


@pytest.mark.parametrize("name", ["class_frequency", "class_incremental", "class_overlap", "no_shift"])
def test_no_sample_is_in_two_tasks(name):
    parts = [numbers(e) for e in call(name).train_stream]
    assert sum(map(len, parts)) == len(set.union(*parts))


@pytest.mark.parametrize("name", sorted(SHIFTS))
def test_a_strategy_trains_on_it_and_probes_find_train_and_test(name):
    benchmark = call(name)
    shape = benchmark.train_stream[0].dataset[0][0].shape
    model = nn.Sequential(nn.Flatten(), nn.Linear(shape.numel(), benchmark.n_classes))
    plugins = [
        NTKPlugin(ProbeSpec(size=4, split=split), Schedule.boundaries_only(), on_error="raise")
        for split in ("train", "test")
    ]
    strategy = build("Naive", benchmark=benchmark, model=model, lr=1e-4, mb_size=8, plugins=plugins)
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    assert all(len(plugin.trajectory) >= 2 for plugin in plugins)


def test_datasets_can_be_pickled_for_workers_and_checkpoints():
    for name in SHIFTS:
        dataset = call(name).train_stream[1].dataset
        copy = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(copy[0][0], dataset[0][0])


# Class overlap


def test_reachable_similarities_by_hand():
    assert reachable_similarities(3) == [0, Fraction(1, 5), Fraction(1, 2), 1]
    assert reachable_similarities(3, n_classes=4) == [Fraction(1, 2), 1]


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(("similarity", "shared"), [(0.0, 0), (0.2, 1), (0.5, 2), (1.0, 3)])
def test_class_overlap_is_the_jaccard_similarity(similarity, shared, fresh):
    first, second = class_overlap_shift(numbered(), similarity, classes_per_task=3, fresh=fresh).train_stream
    a, b = set(per_class(first)), set(per_class(second))
    assert len(a & b) == shared and len(a & b) / len(a | b) == similarity
    assert set(per_class(first).values()) == set(per_class(second).values()) == {4 if fresh else 8}
    common = numbers(first) & numbers(second)
    if fresh:
        assert not common
    else:  # then it is the similarity of the two sets of samples too
        assert len(common) / len(numbers(first) | numbers(second)) == similarity


def test_a_sweep_over_overlap_changes_the_second_task_one_class_at_a_time():
    sweep = [class_overlap_shift(numbered(), s, classes_per_task=3) for s in (1.0, 0.5, 0.2, 0.0)]
    assert len({tuple(samples(b.train_stream[0])) for b in sweep}) == 1
    control = no_shift(numbered(), classes_per_task=3)
    assert samples(control.train_stream[0]) == samples(sweep[0].train_stream[0])
    assert samples(control.train_stream[1]) == samples(sweep[0].train_stream[1])
    second = [set(samples(b.train_stream[1])) for b in sweep]
    for before, after in itertools.pairwise(second):
        assert {y for _, y in before - after} != {y for _, y in after - before}
        assert len({y for _, y in before - after}) == len({y for _, y in after - before}) == 1


def test_overlap_in_words():
    benchmark = class_overlap_shift(numbered(), 0.5, classes_per_task=3, seed=0)
    first, second = benchmark.description.facts["classes"]
    (gone,), (new,) = set(first) - set(second), set(second) - set(first)
    assert benchmark.description.sentence == (
        "class overlap: two tasks of 3 classes of numbers share 2 (Jaccard similarity 0.500);"
        f" {gone} give way to {new}; shared classes have fresh samples."
    )


# The other shifts


def test_no_shift_fresh_and_same():
    fresh = no_shift(numbered(), n_tasks=4).train_stream
    assert [per_class(e) for e in fresh] == [dict.fromkeys(range(6), 2)] * 4
    same = no_shift(numbered(), fresh=False, n_tasks=3).train_stream
    assert samples(same[0]) == samples(same[1]) == samples(same[2])
    assert per_class(same[0]) == dict.fromkeys(range(6), 8)


def test_class_frequencies_by_hand():
    data = numbered(n_classes=2, per_class=20)
    frequencies = ([3, 1], [1, 3])
    for alpha, expected in [(0, (6, 2)), (0.25, (5, 3)), (0.5, (4, 4)), (1, (2, 6))]:
        benchmark = class_frequency_shift(data, alpha, frequencies=frequencies, size=8)
        first, second = benchmark.train_stream
        a, b = benchmark.description.facts["classes"][0]
        assert per_class(first) == {a: 6, b: 2}
        assert per_class(second) == {a: expected[0], b: expected[1]}
        assert benchmark.description.facts["total_variation"] == alpha / 2
        assert [per_class(e) for e in benchmark.test_stream] == [{0: 3, 1: 3}] * 2


def test_default_frequencies_fall_geometrically_and_are_reversed():
    # 9, 3, 1 of 13: with 26 samples exactly twice that.
    first, second = class_frequency_shift(numbered(n_classes=3, per_class=40), 1.0, size=26).train_stream
    assert sorted(per_class(first).values()) == sorted(per_class(second).values()) == [2, 6, 18]
    assert [per_class(first)[c] * per_class(second)[c] for c in range(3)].count(36) == 3


def test_the_size_does_not_depend_on_alpha():
    sizes = {len(class_frequency_shift(numbered(per_class=50), a).train_stream[0].dataset) for a in (0, 0.3, 0.7, 1)}
    assert len(sizes) == 1


def test_class_incremental_covers_each_class_once():
    classes = [set(per_class(e)) for e in class_incremental(numbered(), 2).train_stream]
    assert [len(c) for c in classes] == [2, 2, 2] and set.union(*classes) == set(range(6))
    assert [set(per_class(e)) for e in class_incremental(numbered(), 2).test_stream] == classes
    assert len(class_incremental(numbered(), 4, n_tasks=1).train_stream) == 1


def test_unequal_classes_are_cut_to_the_smallest():
    data = LabelledData.from_tensors(torch.arange(9.0)[:, None], torch.tensor([0] * 6 + [1] * 3), test_share=0.34)
    (experience,) = class_incremental(data, 2).train_stream
    assert per_class(experience) == {0: 2, 1: 2}


def test_permuted_moves_the_same_pixels_of_every_channel():
    x = torch.stack([torch.arange(4.0).reshape(2, 2), 10 + torch.arange(4.0).reshape(2, 2)]).repeat(8, 1, 1, 1)
    data = LabelledData.from_tensors(x, torch.arange(2).repeat(4), x, torch.arange(2).repeat(4))
    streams = permuted(data, n_tasks=3)
    first, second, third = (e.dataset[0][0] for e in streams.train_stream)
    assert torch.equal(first, x[0])
    orders = []
    for moved in (second, third):
        orders.append(moved[0].flatten().tolist())
        assert sorted(orders[-1]) == [0, 1, 2, 3]
        assert torch.equal(moved[1], moved[0] + 10)
    assert orders[0] != orders[1]
    assert torch.equal(streams.test_stream[1].dataset[0][0], second)


def test_rotated_by_hand():
    x = torch.rand(8, 1, 6, 6)
    y = torch.arange(2).repeat(4)
    data = LabelledData.from_tensors(x, y, x, y)
    tasks = rotated(data, (0, 90, 180, -90, 135)).train_stream
    upright = torch.stack([row[0] for row in tasks[0].dataset])
    turned = [torch.stack([row[0] for row in task.dataset]) for task in tasks]
    # Counter-clockwise by 90°: the last column becomes the first row.
    assert torch.equal(turned[1][:, 0, 0], upright[:, 0, :, -1])
    assert torch.equal(turned[2], upright.flip(-1, -2))
    assert torch.equal(turned[3][:, 0, 0], upright[:, 0, :, 0].flip(-1))
    assert torch.equal(turned[4], rotate(turned[1], 45, InterpolationMode.BILINEAR))


def test_label_permuted_leaves_no_label_in_its_place():
    tasks = [dict(samples(e)) for e in label_permuted(numbered(), n_tasks=4, classes_per_task=5).train_stream]
    truth = numbered().train_labels
    assert all(y == truth[n] for n, y in tasks[0].items())
    for before, after in itertools.pairwise(tasks):
        assert before.keys() == after.keys()
        pairs = {(before[n], after[n]) for n in before}
        assert len(pairs) == 5 and all(a != b for a, b in pairs)
        assert {a for a, _ in pairs} == {b for _, b in pairs}


def test_blurred_by_hand():
    benchmark = blurred(numbered(n_classes=4, per_class=16), 2, steps=3, per_class=4)
    a, b = benchmark.description.facts["classes"][0], benchmark.description.facts["classes"][-1]
    mixtures = [per_class(e) for e in benchmark.train_stream]
    assert mixtures == [
        dict.fromkeys(sorted(a), 4),
        dict(sorted({**dict.fromkeys(a, 3), **dict.fromkeys(b, 1)}.items())),
        dict(sorted({**dict.fromkeys(a, 2), **dict.fromkeys(b, 2)}.items())),
        dict(sorted({**dict.fromkeys(a, 1), **dict.fromkeys(b, 3)}.items())),
        dict.fromkeys(sorted(b), 4),
    ]
    parts = [numbers(e) for e in benchmark.train_stream]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert benchmark.description.facts["pure"] == [0, 4]


@pytest.mark.parametrize(
    ("available", "n_tasks", "expected"), [(10, 2, 5), (11, 2, 5), (11, 3, 3), (12, 3, 4), (14, 3, 4), (15, 3, 5)]
)
def test_blurred_takes_as_many_samples_as_there_are(available, n_tasks, expected):
    # Two mixtures take round(n/3) and round(2n/3) of the new class, so n in all, and as many of the old one together:
    # a class of the middle needs 3 n. At the ends of the stream it needs n + n.
    benchmark = blurred(numbered(n_classes=3, per_class=available), 1, steps=2, n_tasks=n_tasks)
    assert benchmark.description.facts["per_class"] == expected
    assert {len(e.dataset) for e in benchmark.train_stream} == {expected}
    parts = [numbers(e) for e in benchmark.train_stream]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_blurred_without_steps_is_class_incremental():
    assert content(blurred(numbered(), 2, steps=0)) == content(class_incremental(numbered(), 2))


# Sources


def test_digits():
    data = load_data("digits")
    assert (data.n_classes, data.input_shape, data.name) == (10, (1, 8, 8), "digits")
    assert len(data.train) + len(data.test) == 1797
    pixels = torch.stack([data.train[i][0] for i in range(100)])
    assert pixels.min() == 0 and pixels.max() == 1
    assert load_data(data) is data


def test_split_digits_keeps_its_signature():
    parameters = inspect.signature(split_digits).parameters
    assert {n: p.default for n, p in parameters.items()} == {
        "n_experiences": 5,
        "seed": 0,
        "test_share": 0.25,
        "task_labels": False,
    }
    assert [len(e.classes_in_this_experience) for e in split_digits().train_stream] == [2] * 5


def picture(path, value, size=(4, 4), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def folder(root, split=True, size=(4, 4)):
    """Classes ant and bee; pixel values tell class and split."""
    for part, base in (("train", 10), ("test", 100)) if split else (("", 10),):
        for number, name in enumerate(("bee", "ant")):
            for i in range(4):
                picture(root / part / name / f"{i}.png", base + 20 * number + i, size)
    return root


def zipped(root, target, prefix=""):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, prefix + path.relative_to(root).as_posix())
    return target


@pytest.mark.parametrize("kind", ["folder", "zip", "zip of a folder"])
def test_images_from_folders_and_zips(tmp_path, kind):
    source = folder(tmp_path / "images")
    if kind != "folder":
        source = zipped(source, tmp_path / "images.zip", "images/" if kind == "zip of a folder" else "")
    data = load_data(source)
    assert data.class_names == ("ant", "bee") and data.input_shape == (1, 4, 4)
    # Classes in alphabetical order, although bee's files were written first.
    got = [(round(float(x.mean() * 255)), y) for x, y in (data.train[i] for i in range(8))]
    assert got == [(30, 0), (31, 0), (32, 0), (33, 0), (10, 1), (11, 1), (12, 1), (13, 1)]
    assert sorted(round(float(data.test[i][0].mean() * 255)) for i in range(8)) == [
        100,
        101,
        102,
        103,
        120,
        121,
        122,
        123,
    ]
    assert len(class_incremental(data, 1).train_stream) == 2


def test_a_folder_without_test_part_is_split_by_class(tmp_path):
    data = load_data(folder(tmp_path, split=False), test_share=0.25)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test_labels.tolist() == [0, 1]


def test_images_are_resized_when_asked(tmp_path):
    folder(tmp_path, size=(8, 4))
    data = load_data(tmp_path, image_size=2)
    assert data.input_shape == (1, 2, 2) and round(float(data.train[0][0].mean() * 255)) == 30


def test_grey_images_among_coloured_ones_have_three_equal_channels(tmp_path):
    folder(tmp_path)
    picture(tmp_path / "test" / "ant" / "9.png", (1, 2, 3), mode="RGB")
    data = load_data(tmp_path)
    assert data.input_shape == (3, 4, 4)
    assert torch.equal(data.train[0][0][0], data.train[0][0][2]) and data.train[0][0][0, 0, 0] == 30 / 255
    assert (data.test[4][0][:, 0, 0] * 255).tolist() == pytest.approx([1, 2, 3])


def test_other_files_of_a_zip_are_left_alone(tmp_path):
    path = zipped(folder(tmp_path / "images"), tmp_path / "images.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "hello")
        archive.writestr("__MACOSX/train/ant/._0.png", "junk")
    assert len(load_data(path).train) == 8


def mnist_files(root):
    """Tiny files in MNIST's format: 6 training and 4 test images of the digits 3 and 7."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 6), ("t10k", 4)):
        pixels = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + pixels.tobytes())
        labels = np.array([3, 7] * (n // 2), dtype=np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + labels.tobytes())
    return root


def test_torchvision_by_name_with_train_and_test_sets(tmp_path):
    data = load_data("MNIST", data_root=mnist_files(tmp_path))
    assert data.train_labels.tolist() == [0, 1] * 3 and data.test_labels.tolist() == [0, 1] * 2
    # Labels are numbered anew, because 3 and 7 alone are there.
    assert data.class_names == ("3", "7")
    assert float(data.train[5][0].mean() * 255) == pytest.approx(5, abs=1e-4) and data.train[5][1] == 1
    assert [len(e.dataset) for e in class_incremental(data, 1).train_stream] == [3, 3]


def test_torchvision_by_name_with_splits(tmp_path):
    for part, n in (("train", 3), ("test", 2)):
        for name in ("negative", "positive"):
            for i in range(n):
                picture(tmp_path / "rendered-sst2" / part / name / f"{i}.png", (i, i, i), mode="RGB")
    data = load_data("RenderedSST2", data_root=tmp_path, image_size=2)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.input_shape == (3, 2, 2) and data.class_names == ("negative", "positive")


def test_torchvision_without_parts_is_split_by_class():
    labels = [int(y) for _, y in torchvision.datasets.FakeData(size=12, num_classes=2)]
    data = load_data("FakeData", size=12, num_classes=2, image_size=2)
    ones = sum(labels)
    assert torch.bincount(data.train_labels).tolist() == [n - round(n / 4) for n in (12 - ones, ones)]
    assert torch.bincount(data.test_labels).tolist() == [round(n / 4) for n in (12 - ones, ones)]
    assert data.input_shape == (3, 2, 2)
    assert [data.train[i][1] for i in range(len(data.train))] == data.train_labels.tolist()


@pytest.mark.skipif(not CIFAR.exists(), reason="the CIFAR-10 subset is not beside this checkout")
def test_the_cifar_subset():
    data = load_data(CIFAR)
    assert data.input_shape == (3, 32, 32) and data.n_classes == 10
    assert torch.bincount(data.train_labels).tolist() == [1000] * 10
    assert torch.bincount(data.test_labels).tolist() == [200] * 10
    assert data.class_names[0] == "airplane"


# Refusals


def test_unsafe_zips(tmp_path):
    def entry(name, data=b"x", mode=None, **attributes):
        path = tmp_path / "bad.zip"
        info = zipfile.ZipInfo(name)
        if mode is not None:
            info.external_attr = mode << 16
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(info, data)
        return path

    tail = (
        ": expected plain image files below CLASS/, train/CLASS/ or test/CLASS/. Do not use this zip, or pack it again."
    )
    for name in ("../up.png", "/etc/up.png", "a/../../up.png", "C:/up.png"):
        path = entry(name)
        assert message(lambda p=path: load_data(p)) == f"entry {name!r} of {path} leads outside the folder{tail}"
    path = entry("train/ant/0.png", mode=stat.S_IFLNK | 0o777)
    assert message(lambda: load_data(path)) == f"entry 'train/ant/0.png' of {path} is a symbolic link{tail}"
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("ant/0.png", "x")
        archive.writestr("ant/0.png", "y")
    assert message(lambda: load_data(path)) == f"entry 'ant/0.png' of {path} occurs twice{tail}"


def test_large_zips_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = tmp_path / "big.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ant/0.png", bytes(1000))
        archive.writestr("bee/0.png", bytes(1000))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 999)
    assert message(lambda: load_data(path)) == (
        f"entry 'ant/0.png' of {path} unpacks to 1000 bytes, more than 999: expected plain image files below CLASS/,"
        " train/CLASS/ or test/CLASS/. Do not use this zip, or pack it again."
    )
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(images, "MAX_TOTAL_BYTES", 1999)
    assert message(lambda: load_data(path)) == (
        f"{path} unpacks to 2000 bytes, more than 1999: expected a zip whose images fit into memory. Use fewer images."
    )


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path):
    path = tmp_path / "lie.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ant/0.png", bytes(100_000))
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", 10)
    path.write_bytes(bytes(data))
    assert message(lambda: load_data(path)) == (
        f"entry 'ant/0.png' of {path} cannot be read (Bad CRC-32 for file 'ant/0.png'). Check that the zip was copied "
        "completely."
    )


def test_images_that_cannot_be_used(tmp_path, monkeypatch):
    odd = folder(tmp_path / "odd")
    picture(odd / "train" / "bee" / "9.png", 1, size=(5, 4))
    assert message(lambda: load_data(odd)) == (
        "image 'train/bee/9.png' has 5×4 pixels, others have 4×4: expected one size. Give image_size to resize all."
    )
    deep = tmp_path / "deep" / "ant" / "0.png"
    picture(deep, 1, mode="I;16")
    assert message(lambda: load_data(tmp_path / "deep")) == (
        "image 'ant/0.png' has more than 8 bits a channel (mode I;16): expected 8. Convert the images, or give tensors."
    )
    broken = folder(tmp_path / "broken")
    (broken / "train" / "ant" / "0.png").write_bytes(b"not an image")
    assert message(lambda: load_data(broken)).startswith(
        "image 'train/ant/0.png' cannot be read (cannot identify image"
    )
    assert message(lambda: load_data(broken)).endswith("). Replace it, or leave it out.")
    fine = folder(tmp_path / "fine")
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 47)
    small = (fine / "test" / "ant" / "0.png").stat().st_size
    assert message(lambda: load_data(fine)) == (
        f"image 'test/ant/0.png' has {small} bytes, more than 47: expected small images. Leave it out."
    )
    wide = tmp_path / "wide" / "ant" / "0.png"
    picture(wide, 0, size=(300, 300))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 2000)
    assert message(lambda: load_data(tmp_path / "wide")) == (
        "image 'ant/0.png' has 300×300 pixels, more than 666: expected small images. Leave it out."
    )
    monkeypatch.setattr(images, "MAX_TOTAL_BYTES", 40)
    assert message(lambda: load_data(fine)) == (
        f"the images of {fine} take more than 40 bytes: expected data that fit into memory. Give a smaller image_size,"
        " or fewer images."
    )


def test_layouts_that_are_something_else(tmp_path):
    flat = tmp_path / "flat"
    picture(flat / "0.png", 1)
    assert message(lambda: load_data(flat)) == (
        f"{flat} holds 1 images, for example '0.png': expected train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE,"
        " with images ending in .jpg, .jpeg, .png, .bmp, .webp, .ppm, .pgm. Arrange the files like this."
    )
    lacking = folder(tmp_path / "lacking")
    picture(lacking / "test" / "cat" / "0.png", 1)
    assert message(lambda: load_data(lacking)) == (
        f"train and test of {lacking} must hold the same classes; found cat in only one of them. Add what is missing,"
        " or leave those classes out."
    )
    text = tmp_path / "text.zip"
    text.write_text("hello")
    assert message(lambda: load_data(text)) == (
        f"{text} cannot be read as a zip (File is not a zip file). Check that it was copied completely."
    )
    nothing = tmp_path / "none.zip"
    assert message(lambda: load_data(nothing)) == f"no zip at {nothing}: expected a file. Check the path."
    assert message(lambda: load_data(tmp_path / "none")) == (
        f"no data at {tmp_path / 'none'}: expected a folder of images or a zip of one, found nothing. Check the path."
    )


def test_torchvision_refusals(tmp_path):
    assert message(lambda: load_data("CIFAR01")) == (
        "unknown data 'CIFAR01': expected 'digits', 'markov', a classification dataset of torchvision.datasets, a"
        " folder of images or a zip of one. The nearest: 'CIFAR10', 'CIFAR100', 'UCF101'."
    )
    assert message(lambda: load_data("CIFAR10")) == (
        "torchvision's CIFAR10 is read from a folder, found data_root=None. Give data_root (--data-root), the folder"
        " that holds it or will hold it."
    )
    # Nothing is downloaded unless asked for.
    assert message(lambda: load_data("CIFAR10", data_root=tmp_path)) == (
        f"torchvision's CIFAR10 cannot be read from {tmp_path} (RuntimeError: Dataset not found or corrupted. You can"
        " use download=True to download it). Give download=True (--download) to fetch it, or check data_root."
    )
    assert not list(tmp_path.iterdir())


X, Y = torch.zeros(4, 1), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda: class_overlap_shift(numbered(n_classes=10), 0.5),
            "two tasks of 5 classes that share m have similarity m / (10 − m); found similarity=0.5. Use one of 0,"
            " 1/9 (0.111), 1/4 (0.250), 3/7 (0.429), 2/3 (0.667), 1.",
        ),
        (
            lambda: class_overlap_shift(numbered(), 0.0, classes_per_task=4),
            "two tasks of 4 classes with similarity 0 have 8 different classes and numbers has 6; found similarity=0.0."
            " Use one of 1/3 (0.333), 3/5 (0.600), 1, or classes_per_task=3.",
        ),
        (
            lambda: class_overlap_shift(numbered(), 1.0, classes_per_task=7),
            "numbers has 6 classes, found classes_per_task=7. Use a number from 1 to 6.",
        ),
        (
            lambda: no_shift(numbered(), per_class=5),
            "each task takes samples of a class 2 times, without repetition, and the smallest class of numbers has 8;"
            " found per_class=5. Use per_class=4 or less, or the same samples in each task (fresh=False).",
        ),
        (
            lambda: no_shift(numbered(), n_tasks=9),
            "each task takes samples of a class 9 times, without repetition, and the smallest class of numbers has 8;"
            " found per_class=None. Take data with more samples of each class, or fewer tasks.",
        ),
        (
            lambda: class_incremental(numbered(), per_class=9),
            "each task takes samples of a class once and the smallest class of numbers has 8; found per_class=9. Use"
            " per_class=8 or less.",
        ),
        (
            lambda: no_shift(numbered(), n_tasks=1),
            "a shift needs at least two tasks, found n_tasks=1. Use n_tasks=2 or more.",
        ),
        (
            lambda: class_frequency_shift(numbered(), 1.5),
            "alpha must lie in [0, 1], found 1.5. Use 0 for no shift and 1 for D1 itself.",
        ),
        (
            lambda: class_frequency_shift(numbered(), 0.5, imbalance=0.5),
            "imbalance must be a number of at least 1, found 0.5. Use 9, for example.",
        ),
        (
            lambda: class_frequency_shift(numbered(n_classes=2), 0.5, frequencies=([1, 0], [0, 1])),
            "frequencies must be two sequences of 2 positive numbers, one for each class; found ([1, 0], [0, 1]). The"
            " set of classes is the same in both tasks, so none may be 0.",
        ),
        (
            lambda: class_frequency_shift(
                numbered(n_classes=2, per_class=18), 1, frequencies=([1, 1], [1, 1]), size=17
            ),
            "two tasks of one size, without a common sample, hold from 2 to 16 samples of numbers with these"
            " frequencies; found size=17. Use a size in that range, or less imbalance.",
        ),
        (
            lambda: class_frequency_shift(numbered(n_classes=2, per_class=40), 1, frequencies=([9, 1], [1, 9]), size=4),
            "the set of classes must stay the same, and the rarest class has no sample left in a task of 4. Use size=10"
            " or more, or less imbalance.",
        ),
        (
            lambda: class_incremental(numbered(), 4),
            "numbers has 6 classes and each task takes as many; found classes_per_task=4. Use one of 1, 2, 3, 6, or"
            " n_tasks=1 to leave some out.",
        ),
        (
            lambda: class_incremental(numbered(), 2, n_tasks=4),
            "4 tasks of 2 classes need 8 classes and numbers has 6. Use n_tasks from 1 to 3, or fewer"
            " classes_per_task.",
        ),
        (
            lambda: blurred(numbered(), 2, steps=3, per_class=3),
            "a class is spread over its task and 3 mixtures at each side, and the smallest class of numbers has 8"
            " samples; found per_class=3. Use per_class=2 or less, or fewer steps.",
        ),
        (lambda: blurred(numbered(), 2, steps=-1), "steps must be 0 or more, found -1. Use 3, for example."),
        (
            lambda: rotated(numbered()),
            "only square images can be rotated, found inputs of shape (1,). Give images (channels, side, side), or use"
            " permuted.",
        ),
        (
            lambda: LabelledData.from_tensors(X, Y, x_test=X),
            "a test set needs inputs and labels, found no y_test. Give x_test and y_test, or neither of them.",
        ),
        (
            lambda: LabelledData.from_tensors(X, Y[:3]),
            "each input needs one label, found 4 inputs and 3 labels. Give as many labels as inputs.",
        ),
        (
            lambda: LabelledData.from_tensors(X, Y + 1, X, Y + 1),
            "labels must be the integers 0 … C−1, each with at least one sample; found 1, 2. Renumber them"
            " (torch.unique(y, return_inverse=True)[1]).",
        ),
        (
            lambda: LabelledData.from_tensors(X, Y, X, Y * 0),
            "train and test set must have the same classes; found no test sample of classes 1. Take both from one"
            " source, or leave those classes out.",
        ),
        (
            lambda: LabelledData.from_tensors(X, Y, X, Y + torch.tensor([0, 1, 0, 1])),
            "train and test set must have the same classes; found test classes 2 unseen. Take both from one source, or"
            " leave those classes out.",
        ),
        (
            lambda: LabelledData.from_tensors(X, Y.float(), X, Y),
            "train labels must be one integer for each of the 4 samples, found a tensor of shape (4,) and dtype"
            " torch.float32. Give labels as int64 of shape (4,).",
        ),
        (
            lambda: LabelledData.from_tensors(X, Y, X, Y, class_names=["a"]),
            "class_names must name 2 classes, found 1 names. Give one name for each label.",
        ),
        (
            lambda: LabelledData.from_tensors(X, Y, test_share=0.1),
            "class 0 has 2 samples, of which test_share=0.1 leaves 2 for training and 0 for testing; expected at least"
            " one of each. Change test_share, or give a test set.",
        ),
        (
            lambda: load_data("digits", test_share=1.0),
            "test_share must lie between 0 and 1; found 1.0. Use 0.25, for example.",
        ),
    ],
)
def test_messages(call, expected):
    assert message(call) == expected


def test_standardised_channels_have_mean_zero_and_deviation_one():
    x = torch.rand(40, 2, 3, 3) * torch.tensor([4.0, 0.5]).reshape(2, 1, 1) + torch.tensor([1.0, -7.0]).reshape(2, 1, 1)
    x[:, 1, 1, 1] = -7.0
    data = standardised(LabelledData.from_tensors(x, torch.arange(40) % 4, seed=1))
    train = torch.stack([data.train[i][0] for i in range(len(data.train_labels))]).double()
    assert train.mean((0, 2, 3)).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    assert train.std((0, 2, 3), correction=0).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    # The test part is moved by the training part's numbers: distances stay in proportion.
    plain = LabelledData.from_tensors(x, torch.arange(40) % 4, seed=1)
    for a, b in ((data.test[0][0], plain.test[0][0]), (data.train[3][0], plain.train[3][0])):
        assert torch.equal((a[0] - a[0, 0, 0]).argsort(), (b[0] - b[0, 0, 0]).argsort())
    grey = load_data("digits", standardise=True)
    digits = torch.stack([grey.train[i][0] for i in range(len(grey.train_labels))]).double()
    assert (digits.mean().item(), digits.std().item()) == pytest.approx((0.0, 1.0), abs=1e-4)


def test_what_is_constant_is_centred_and_tokens_are_refused():
    flat = standardised(LabelledData.from_tensors(torch.full((8, 1, 2, 2), 3.0), torch.arange(8) % 2))
    assert torch.equal(flat.train[0][0], torch.zeros(1, 2, 2))
    with pytest.raises(ArgumentError) as caught:
        load_data("markov", n_classes=2, per_class=8, standardise=True)
    assert str(caught.value) == (
        "standardised inputs must be numbers, found markov with inputs of dtype torch.int64. Leave standardise out: "
        "tokens have no mean."
    )
