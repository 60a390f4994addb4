"""What is wrong with a run folder is found, and nothing is found where nothing is wrong."""

import json
import sys

import pytest

from avalanche_ntk import cli
from avalanche_ntk.report import inspect_run
from tests.integration.report.conftest import STEPS

MEASUREMENTS = 3 * (STEPS + 1)


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["avalanche-ntk", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, *capsys.readouterr()


def test_a_whole_run(make_run, monkeypatch, capsys):
    path = make_run()
    found = inspect_run(path)
    assert (found.whole, found.problems, found.remarks) == (True, [], [])
    assert found.records == {"measurement": MEASUREMENTS, "reactivation": 3, "evaluation": 3}
    assert (found.experiences, found.iterations) == (3, 120)
    (probe,) = found.probes
    assert (probe.name, probe.samples, probe.measurements, probe.kernels) == ("Exp000", 8, MEASUREMENTS, MEASUREMENTS)
    assert found.bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    code, out, err = command(monkeypatch, capsys, "inspect", path)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"Run:         {path}"
    assert out.splitlines()[2:] == [
        "What:        strategy Naive, seed 0, schedule every_iterations:5",
        f"Holds:       3 experiences, 120 iterations, {found.bytes / 1000:.1f} kB",
        "Records:     measurement × 27, reactivation × 3, evaluation × 3",
        "Probe:       Exp000: 8 samples, 27 measurements, 27 kernels intact",
        "Whole:       yes",
    ]


def kernel_file(path, index):
    return path / "kernels" / "Exp000" / f"{index:06d}.safetensors"


def test_a_missing_and_a_changed_kernel(make_run, monkeypatch, capsys):
    path = make_run()
    kernel_file(path, 2).unlink()
    content = bytearray(kernel_file(path, 5).read_bytes())
    content[-1] ^= 1
    kernel_file(path, 5).write_bytes(bytes(content))
    found = inspect_run(path)
    assert found.problems == [
        "probe 'Exp000': kernels/Exp000/000002.safetensors cannot be used: the file is missing.",
        "probe 'Exp000': kernels/Exp000/000005.safetensors cannot be used: its content does not match its checksum: it "
        "was changed or damaged after it was written.",
    ]
    assert found.probes[0].kernels == MEASUREMENTS - 2
    code, out, _ = command(monkeypatch, capsys, "inspect", path)
    assert code == 1
    assert "Probe:       Exp000: 8 samples, 27 measurements, 25 kernels intact, 2 not usable" in out
    assert out.endswith("Whole:       no\n")


def test_a_kernel_of_another_probe_s_size(make_run):
    path = make_run()
    meta = json.loads((path / "run.json").read_text())
    meta["meta"]["probes"][0]["labels"] = [0, 1]
    (path / "run.json").write_text(json.dumps(meta))
    assert inspect_run(path).problems[0] == (
        "probe 'Exp000': kernels/Exp000/000000.safetensors has arrays of shape (8, 8)."
    )


@pytest.mark.parametrize("torn", [b'{"kind": "measu', b"\x00\x00\x00\n"], ids=["cut off", "garbage"])
def test_an_incomplete_last_line(make_run, torn):
    path = make_run()
    with (path / "measurements.jsonl").open("ab") as file:
        file.write(torn)
    assert inspect_run(path).problems == [
        "measurements.jsonl ends in an incomplete line after 33 records: it is being written just now, or its writer "
        "was stopped. RunFolder.resume sets the line aside and continues."
    ]


def test_a_damaged_line(make_run):
    path = make_run()
    lines = (path / "measurements.jsonl").read_bytes().splitlines(keepends=True)
    (path / "measurements.jsonl").write_bytes(b"".join([lines[0], b"{}\n", *lines[2:]]))
    found = inspect_run(path)
    assert found.problems == [
        f"run folder {path}: measurements.jsonl cannot be used: line 2: the key 'kind' is missing. The records after "
        "that line, and the kernels, were not checked."
    ]


def test_failed_measurements(make_run):
    assert inspect_run(make_run(fail=(3, 4))).problems == [
        "2 of 27 measurements of probe 'Exp000' failed: KernelError: <b>not</b> finite"
    ]


def test_remarks_are_no_faults(make_run):
    path = make_run()
    (path / "measurements.torn").write_bytes(b"x")
    kernel_file(path, 99).write_bytes(b"x")
    found = inspect_run(path)
    assert found.whole
    assert found.remarks == [
        "1 kernel that no record names (kernels/Exp000/000099.safetensors): left by a process that was stopped before "
        "it wrote the record, or set aside by a rewind.",
        "measurements.torn holds an incomplete line of a stopped process; the run continued after it.",
    ]


def test_a_run_that_was_killed_is_intact_and_says_where_it_stands(make_run):
    path = make_run()
    lines = [json.loads(line) for line in (path / "measurements.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["kind"] == "measurement" or line["experience"] < 2]
    (path / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    found = inspect_run(path)
    assert found.whole
    assert found.remarks == ["experience 2 was begun and has not ended: training continues, or was stopped."]


def test_a_run_that_has_some_of_its_experiences_says_how_many(make_run):
    path = make_run()
    text = json.loads((path / "run.json").read_text())
    text["meta"] |= {"experiences_done": 3, "n_experiences": 5}
    (path / "run.json").write_text(json.dumps(text))
    assert inspect_run(path).remarks == ["3 of 5 experiences were trained: training continues, or was stopped."]


def test_a_run_that_has_just_begun(make_run):
    path = make_run(experiences=0)
    found = inspect_run(path)
    assert found.whole
    assert found.remarks == ["nothing was measured yet."]
    (path / "measurements.jsonl").unlink()
    assert inspect_run(path).remarks[0] == "there is no measurements.jsonl: the run was made and wrote no record."


def test_many_runs_as_json(make_run, tmp_path, monkeypatch, capsys):
    make_run("runs/good", experiences=1)
    make_run("runs/bad", experiences=1, fail=(1,))
    (make_run("runs/ugly", experiences=1) / "run.json").write_text("[]")
    code, out, _ = command(monkeypatch, capsys, "inspect", tmp_path / "runs", "--json")
    found = json.loads(out)
    assert code == 1
    assert {run["path"].rpartition("/")[2]: run["whole"] for run in found["runs"]} == {"bad": False, "good": True}
    assert found["unreadable"] == [
        f"run folder {tmp_path / 'runs' / 'ugly'}: run.json cannot be used: expected an object with "
        '"schema": "avalanche-ntk-run", so it is not a file of this package.'
    ]
    code, out, _ = command(monkeypatch, capsys, "inspect", tmp_path / "runs")
    assert (code, out.splitlines()[-1]) == (1, "1 of 3 runs are intact.")


def test_no_run_is_an_error_without_traceback(tmp_path, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "inspect", tmp_path / "gone")
    assert (code, out) == (1, "")
    assert err == f"avalanche-ntk: there is no run folder {tmp_path / 'gone'}: nothing exists at that path. Check it.\n"
