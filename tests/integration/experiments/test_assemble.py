"""Data of a configuration: read once for all runs of a process."""

import io
import os
import zipfile

import pytest
from PIL import Image

from avalanche_ntk.experiments import load_config
from avalanche_ntk.experiments.assemble import make_benchmark
from avalanche_ntk.lab.benchmarks import images


@pytest.mark.parametrize(("parts", "decodings"), [(["train/", "test/"], 1), ([""], 3)])
def test_a_process_decodes_a_zip_once_unless_a_seed_or_the_file_changes_the_data(
    tmp_path, monkeypatch, parts, decodings
):
    """8 images each way; a zip without a test part is split anew by every seed."""
    images_per_part = 8 // len(parts)
    path = tmp_path / "images.zip"

    def write(brightness):
        with zipfile.ZipFile(path, "w") as archive:
            for part in parts:
                for i in range(images_per_part):
                    content = io.BytesIO()
                    Image.new("L", (4, 4), brightness + i).save(content, "png")
                    archive.writestr(f"{part}{'ab'[i % 2]}/{i}.png", content.getvalue())

    read = images._decode
    decoded = []

    def counted(name, *arguments):
        decoded.append(name)
        return read(name, *arguments)

    def loaded(seed):
        return make_benchmark(load_config({"benchmark": {"data": str(path), "n_tasks": 1}, "seed": seed}))[0]

    monkeypatch.setattr(images, "_decode", counted)
    write(10)
    for seed in (0, 0, 1, 0):
        loaded(seed)
    assert len(decoded) == 8 * decodings
    write(100)
    os.utime(path, (1, 1))  # a clock that is too coarse for this test would show one time for both
    x = loaded(0).train_stream[0].dataset[0][0]
    assert len(decoded) == 8 * (decodings + 1) and float(x.min()) * 255 >= 99
