"""Runs over seeds: groups, verdicts, the table and the figure of a paper."""

import io
import math
import re
import shutil
import subprocess

import pandas as pd
import pytest
from scipy import stats

from avalanche_ntk import measures
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures import Reactivation, verdict_over_seeds
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.report import load, seed_curves, seed_table, write_report
from avalanche_ntk.report.groups import groups_of, matching, verdicts, verdicts_over_seeds
from avalanche_ntk.report.runs import read_run, read_runs
from avalanche_ntk.report.sections import Report
from avalanche_ntk.report.style import COLOURS

LABELS = {0: [0, 1] * 2, 1: [2, 3] * 2, 2: [4, 5] * 2}  # each seed draws classes of its own


def found_at(experience, **values):
    numbers = {"spike": 1e-3, "ratio": 4.0, "peak": 2e-3, "at_floor": False, "cadence": [5.0, 5.0], **values}
    return {"boundary": 40.0 * experience, "end": 40.0 * (experience + 1), **numbers}


def make(path, strategy, seed, control=False, labels=None, sweep="s", boundaries=2, varied=None, **values):
    """Write a run folder of a sweep by hand."""
    config = {"strategy": {"name": strategy}, "seed": seed, "benchmark": "no_shift" if control else "shift"}
    tags = {
        "sweep": sweep, "label": ("control, " if control else "") + f"strategy={strategy}", "control": control,
        "values": {"strategy.name": strategy, **(varied or {})},
    }  # fmt: skip
    known = {"name": "Exp000", "size": 4, "hash": f"h{seed}", "experience": 0, "labels": labels or LABELS[seed]}
    meta = {"probes": [known], "seed": seed, "config": config, "tags": tags, "status": "complete", "cadence": "c"}
    with RunFolder.create(path, {**meta, "strategy": strategy}) as folder:
        for experience in range(boundaries + 1):
            found = found_at(experience, **values) if experience else {"boundary": 0.0, "end": 40.0, "onset": 0.1}
            folder.append({"kind": "reactivation", "probe": "Exp000", "experience": experience, "reactivation": found})
            accuracy = {"Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000": 0.9 - 0.2 * experience}
            iteration = 40 * (experience + 1)
            folder.append({"kind": "evaluation", "experience": experience, "iteration": iteration, "values": accuracy})
    return path


@pytest.fixture
def sweep(tmp_path):
    """Two strategies and three seeds, the spikes of one far above its control's, those of the other not."""
    for strategy, spikes in (("Naive", (4e-4, 5e-4, 6e-4)), ("EWC_online", (1e-4, 9e-4, 2e-5))):
        for seed, spike in enumerate(spikes):
            make(tmp_path / f"{strategy}{seed}", strategy, seed, peak=spike, spike=spike, ratio=10.0)
            control = {"peak": 2e-4, "spike": 2e-4, "ratio": 2.0}
            make(tmp_path / f"control-{strategy}{seed}", strategy, seed, control=True, **control)
    return tmp_path


def test_runs_that_differ_in_the_seed_are_a_group_and_controls_come_last(sweep):
    groups = groups_of(read_runs(sweep)[0])
    assert [(g.name, g.control, len(g.runs)) for g in groups] == [
        ("EWC_online", False, 3), ("Naive", False, 3), ("EWC_online", True, 3), ("Naive", True, 3),
    ]  # fmt: skip


def test_runs_whose_seed_is_not_their_own_are_no_group(tmp_path):
    for name in ("a", "b"):
        make(tmp_path / name, "Naive", 0)
    assert [len(g.runs) for g in groups_of(read_runs(tmp_path)[0])] == [1, 1]


def test_controls_of_other_classes_are_passed_over(sweep):
    run = read_run(sweep / "Naive1")
    controls = [read_run(sweep / f"control-Naive{seed}") for seed in range(3)]
    found, reasons = matching(run.trajectory(), controls)
    assert [series.labels.tolist() for series in found] == [LABELS[1]]
    assert len(reasons) == 2 and all("a control watches a probe of the same classes" in reason for reason in reasons)
    judged = verdicts(run.trajectory(), controls)
    assert {e: (v.verdict, v.controls) for e, v in judged.items()} == {
        1: ("above the controls", 1), 2: ("above the controls", 1),
    }  # fmt: skip
    assert verdicts(run.trajectory(), controls[:1]).startswith("none of 1 control matches: control-Naive0: a control")


def pairs(*both):
    return [
        tuple(Reactivation(1, 2, peak=p, spike=p - p / r, ratio=r, at_floor=False, cadence=(5.0, 5.0)) for p, r in one)
        for one in both
    ]


def test_the_verdict_over_seeds_is_that_of_two_intervals():
    three = (((4.0, 8.0), (1.0, 1.0)), ((8.0, 16.0), (1.0, 2.0)), ((16.0, 32.0), (4.0, 3.0)))
    found = verdict_over_seeds(pairs(*three))
    for quotients, told in (([4.0, 8.0, 4.0], found.peak), ([8.0, 8.0, 32 / 3], found.ratio)):
        logs = [math.log(q) for q in quotients]
        low, high = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
        assert [math.log(v) for v in told] == pytest.approx([sum(logs) / 3, low, high])
    assert (found.verdict, found.seeds) == ("reactivated", 3)
    # One of the two alone is no verdict, nor is a peak that does not exceed the base.
    for one in (((1.0, 8.0), (1.0, 1.0)), ((8.0, 2.0), (1.0, 2.0)), ((8.0, 0.5), (1.0, 0.1))):
        assert verdict_over_seeds(pairs(one, one, one)).verdict == "not distinguishable"


def test_a_verdict_over_seeds_takes_three_that_are_defined():
    one, control = pairs(((4.0, 8.0), (1.0, 1.0)))[0]
    floor = Reactivation(1, 2, peak=1.0, spike=1.0, ratio=1.0, at_floor=True, cadence=(5.0, 5.0))
    none = Reactivation(1, 2, reasons={"spike": "why"})
    found = verdict_over_seeds([(one, control), (one, control), (one, floor), (none, control)])
    assert (found.verdict, found.seeds) == ("undefined", 2)
    assert found.reason == "it takes 3 seeds with spike and ratio defined for run and control, found 2"
    with pytest.raises(ArgumentError, match="velocities of different cadences are not comparable"):
        verdict_over_seeds(
            [(one, Reactivation(1, 2, peak=1.0, spike=1.0, ratio=1.0, at_floor=False, cadence=(1.0, 5.0)))]
        )


def test_each_seed_stands_beside_its_own_control(sweep):
    runs = read_runs(sweep)[0]
    report = Report(runs, None, [])
    judged = {g.name: verdicts_over_seeds(g, report.controls, None) for g in report.groups}
    assert {name: [v.verdict for v in found.values()] for name, found in judged.items()} == {
        "EWC_online": ["not distinguishable"] * 2, "Naive": ["reactivated"] * 2,
    }  # fmt: skip
    assert judged["Naive"][1].peak[0] == pytest.approx((2.0 * 2.5 * 3.0) ** (1 / 3))
    assert judged["Naive"][1].ratio == pytest.approx((5.0, 5.0, 5.0))


def test_one_paragraph_a_strategy(sweep):
    body = Report(read_runs(sweep)[0], None, []).answer().body
    items = re.findall(r"<li><strong>(.*?)</strong>(.*?)</li>", body.split("</ul>")[0])
    assert [name for name, _ in items] == ["EWC_online (3 seeds)", "Naive (3 seeds)"]
    # 5e-4 ± 4.303 · 1e-4/√3
    assert items[1][1].startswith(": over 2 boundaries the spike is (5.0 ± 2.5)e-04 per iteration, 10.0")
    assert items[1][1].endswith("Verdict over 3 seeds, each beside its own control: reactivated at 2 of 2 boundaries.")
    assert items[0][1].endswith("reactivated at 0 of 2 boundaries.")
    assert "No verdict" not in body


def test_a_strategy_without_a_spike_says_why(make_run, tmp_path):
    for seed in range(3):
        config = {"strategy": {"name": "Naive"}, "seed": seed}
        tags = {"sweep": "s", "label": "Naive", "control": False, "values": {"strategy.name": "Naive"}}
        make_run(f"runs/Naive-{seed}", experiences=3, steps=2, seed=seed, meta={"config": config, "tags": tags})
    body = Report(read_runs(tmp_path / "runs")[0], None, []).answer().body
    assert "over 2 boundaries no spike can be given: of 2 velocities before the boundary" in body
    assert "the spike is" not in body and "it takes 3 seeds" not in body


def test_the_table(sweep):
    made = seed_table(sweep, ["spike", "ratio", "forgetting"])
    half = stats.t.ppf(0.975, 2) * 1e-4 / math.sqrt(3)
    naive = next(row for row in made.rows if row.setting == "Naive" and not row.control)
    cell = naive.cells["spike"]
    assert (cell.mean, cell.low, cell.high, cell.seeds) == pytest.approx((5e-4, 5e-4 - half, 5e-4 + half, 3))
    assert naive.cells["forgetting"].mean == pytest.approx(0.2)  # 0.9 after the first task, 0.7 after the second
    lines = made.markdown().splitlines()
    assert lines[0] == "| setting | boundary | seeds | spike | ratio | forgetting |"
    assert lines[4].startswith("| Naive | 1 → 2 | 3 | (5.0 ± 2.5)e-04 | ")
    assert lines[8].startswith("| Naive (control) | 1 → 2 | 3 | ")
    table = pd.read_csv(io.StringIO(made.csv()))
    assert table["setting"].tolist() == ["EWC_online"] * 2 + ["Naive"] * 2 + ["EWC_online"] * 2 + ["Naive"] * 2
    assert table["control"].tolist() == [False] * 4 + [True] * 4
    assert table.loc[2, ["spike", "spike_low", "spike_high", "spike_seeds"]].tolist() == pytest.approx(
        [5e-4, 5e-4 - half, 5e-4 + half, 3]
    )
    with pytest.raises(ArgumentError, match="unknown column 'spikes'"):
        seed_table(sweep, ["spikes"])


def test_a_lower_bound_and_one_seed_are_told(tmp_path):
    make(tmp_path / "a", "Naive", 0, ratio=10.0, at_floor=True, boundaries=1)
    made = seed_table(tmp_path, ["spike", "ratio"])
    assert "| Naive | 1 → 2 | 1 | 0.00100 | ≥ 10.0 |" in made.markdown()
    assert r"Naive & 1 $\to$ 2 & 1 & $0.00100$ & $\geq$ $10.0$ \\" in made.latex()


def test_the_latex_table(sweep):
    text = seed_table(sweep).latex()
    assert r"EWC\_online & 1 $\to$ 2 & 3 & " in text
    assert r"$(5.0 \pm 2.5) \times 10^{-4}$" in text
    assert text.count(r"\midrule") == 2  # below the headings, and above the controls
    check_latex(text)


def check_latex(text):
    """What LaTeX would refuse: unbalanced braces or dollars, a bare special, a row of another length."""
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    rows = [line for line in lines if line.endswith(r"\\")]
    assert lines[-1] == r"\end{tabular}" and all(len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1 for row in rows)
    for row in rows:
        assert len(re.findall(r"(?<!\\)\$", row)) % 2 == 0
        assert row.count("{") == row.count("}")
        outside = "".join(re.split(r"(?<!\\)\$", row)[::2])
        assert not re.search(r"(?<!\\)[_^#%]|[^\x00-\x7f]|\be-\d", outside)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX is installed")
def test_the_latex_table_compiles(sweep, tmp_path):
    (tmp_path / "table.tex").write_text(seed_table(sweep).latex())
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n\\tiny\\input{table}\n\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_boundaries_have_what_was_run(tmp_path):
    for width in (8, 16):
        make(tmp_path / f"r{width}", "Naive", 0, varied={"model.width": width}, spike=width * 1e-4)
    table = load(tmp_path, "boundaries")
    assert list(table.columns[:8]) == [
        "run", "strategy", "seed", "control", "strategy.name", "model.width", "probe", "experience",
    ]  # fmt: skip
    assert table.dtypes[["strategy", "seed", "control", "model.width"]].astype(str).tolist() == [
        "string", "Int64", "boolean", "Float64",
    ]  # fmt: skip
    assert table.loc[table["model.width"] == 16, "spike"].tolist()[1:] == pytest.approx([16e-4, 16e-4])
    assert table.loc[0, ["strategy", "seed", "control", "strategy.name"]].tolist() == ["Naive", 0, False, "Naive"]


def test_a_sweep_over_a_column_s_own_name_has_a_column_of_its_own(tmp_path):
    make(tmp_path / "a", "Naive", 0, varied={"seed": "x"})
    table = load(tmp_path, "boundaries")
    assert table["seed"].tolist() == [0, 0, 0] and table["sweep.seed"].tolist() == ["x"] * 3


def test_the_curves_have_one_colour_and_one_band_a_strategy(make_run, tmp_path):
    for strategy in ("Naive", "Replay"):
        for seed in range(3):
            config = {"strategy": {"name": strategy}, "seed": seed}
            tags = {"sweep": "s", "label": strategy, "control": False, "values": {"strategy.name": strategy}}
            meta = {"config": config, "tags": tags}
            make_run(f"runs/{strategy}{seed}", experiences=2, seed=seed, meta=meta, keep_kernels=False)
    figure = seed_curves(tmp_path / "runs")
    axis = figure.axes[0]
    lines = [line for line in axis.lines if len(line.get_xdata()) > 2]
    assert [line.get_color() for line in lines] == list(COLOURS[:2])
    assert len(axis.collections) == 2
    runs = [read_run(tmp_path / "runs" / f"Naive{seed}").trajectory() for seed in range(3)]
    at = 3  # the fourth measurement
    values = [run[at].values["spectral_norm"] for run in runs]
    mean, low, high = measures.interval(values)
    assert lines[0].get_xdata()[at] == runs[0][at].clock.iteration
    assert lines[0].get_ydata()[at] == pytest.approx(mean)
    band = axis.collections[0].get_paths()[0].vertices
    drawn = sorted(y for x, y in band if x == runs[0][at].clock.iteration)
    assert (drawn[0], drawn[-1]) == pytest.approx((low, high))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Naive", "Replay"]
    assert figure.get_figwidth() == pytest.approx(3.3)


def test_a_report_of_27_runs_is_short(make_run, tmp_path):
    """Nine strategies, three seeds: a paragraph a strategy, less than 3 MB."""
    names = [f"Strategy{i}" for i in range(9)]
    for strategy in names:
        for seed in range(3):
            config = {"strategy": {"name": strategy}, "seed": seed}
            tags = {"sweep": "s", "label": strategy, "control": False, "values": {"strategy.name": strategy}}
            meta = {"config": config, "tags": tags}
            make_run(f"runs/{strategy}-{seed}", experiences=3, seed=seed, meta=meta)
    done = write_report(tmp_path / "runs", tmp_path / "out", formats=["png"])
    text = done.page.read_text()
    assert len(re.findall(r"<li><strong>Strategy\d \(3 seeds\)</strong>", text)) == 9
    assert done.page.stat().st_size < 3e6
