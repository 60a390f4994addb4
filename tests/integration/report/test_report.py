"""The page: it says what is in the runs, stands alone, and shows foreign text as text."""

import json
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from avalanche_ntk import cli
from avalanche_ntk.errors import ArgumentError, RunFolderError
from avalanche_ntk.measures import Reactivation
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report import four_panels, write_report
from avalanche_ntk.report.answer import answer, cautions
from avalanche_ntk.report.kernel_figures import boundary_moments
from avalanche_ntk.report.runs import read_run, read_runs
from avalanche_ntk.report.sections import Report
from avalanche_ntk.report.style import COLOURS, STYLES, look, to_bytes
from avalanche_ntk.report.writing import _file_names
from tests.integration.report.conftest import Made

EVIL = '<script>alert("x")</script>'
ATTRIBUTES = {
    *(
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "class",
        "href",
        "id",
        "aria-labelledby",
        "aria-label",
        "role",
    ),
    *("scope", "tabindex", "data-label", "open", "style", "width", "height", "x", "y", "d", "transform", "version"),
    *("viewbox", "xmlns", "xmlns:xlink", "xlink:href", "clip-path", "type"),
}
VOID = {"meta", "br", "hr", "img", "input", "link", "col"}


class Parsed(HTMLParser):
    """What is in a page; that its elements are closed in order is checked on the way."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.stack, self.texts = [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report on two runs in which everything was measured, one of them with a hostile name and hostile contents."""
    folder = tmp_path_factory.mktemp("report")
    runs = {
        "naive": Made(rich=True).write(folder / "naive"),
        EVIL: Made(
            rich=True,
            seed=1,
            accuracies=(1.0, 1.0, 0.5),
            layers=(EVIL, "$x^$_{"),
            notes=(EVIL,),
            fail=(3,),
            meta={"optimizer": {"name": EVIL, EVIL: 1}, "strategy": EVIL, "device": "\x1b[31mred\u202e"},
        ).write(folder / "evil"),
    }
    done = write_report(runs, folder / "out", title=EVIL, formats=["png"])
    text = done.page.read_text(encoding="utf-8")
    return runs, done, text, Parsed(text)


# ---------------------------------------------------------------------- the page as a whole


def test_the_page_asks_for_nothing_from_elsewhere(written):
    _, _, text, page = written
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, value[:80])
    assert not re.search(r"@import|url\((?!#)", text)
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_foreign_text_is_shown_as_text(written):
    _, done, text, page = written
    assert "<script" not in text
    for _, attributes in page.elements:
        assert set(attributes) <= ATTRIBUTES, set(attributes) - ATTRIBUTES  # none that a quote in a name has made
    assert page.all("title") and page.text.count(EVIL) > 10
    assert "\x1b" not in text and "\u202e" not in text
    for attributes in page.all("svg"):
        assert attributes["role"] == "img" and len(attributes["aria-label"]) > 20
    for path in done.figures:
        assert re.fullmatch(r"[A-Za-z0-9._-]+\.png", path.name)


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(written):
    _, _, text, page = written
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("href", "xlink:href"):
            if attributes.get(name, "").startswith("#"):
                assert attributes[name][1:] in ids
        for name in ("aria-labelledby",):
            if name in attributes:
                assert attributes[name] in ids
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_it_is_made_for_phones_dark_rooms_keyboards_and_screen_readers(written):
    _, _, text, page = written
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "@media (prefers-color-scheme: dark)" in text and "@media (max-width" in text
    assert page.all("a")[0] == {"class": "skip", "href": "#answer"}
    assert len(page.all("h1")) == 1 and len(page.all("main")) == 1
    regions = [d for d in page.all("div") if d.get("class") == "table"]
    assert regions and all(d["tabindex"] == "0" and d["aria-label"] for d in regions)
    assert len(page.all("caption")) == len(page.all("table")) == len(regions)
    # No colour of a drawing is fixed: each is a variable that both themes set, but for the pictures' own.
    drawn = set(re.findall(r"(?:stroke|fill): (#[0-9a-f]{6})", text))
    assert drawn <= {"#ffffff", "#000000"}, drawn
    variables = set(re.findall(r"var\((--[a-z0-9]+)\)", text))
    light, dark = text.split("@media (prefers-color-scheme: dark)", 1)
    dark = dark.split("* {", 1)[0]
    for variable in variables:
        assert f"{variable}:" in light.split("<style>", 1)[1] and f"{variable}:" in dark


def test_the_sections_come_in_order_the_answer_first(written):
    page = written[3]
    assert [s["id"] for s in page.all("section")] == [
        *(
            "answer",
            "curves",
            "reactivation",
            "spectra",
            "kernels",
            "layers",
            "linearity",
            "overlap",
            "further",
            "trust",
        ),
        "configuration",
    ]
    assert [a["href"][1:] for a in page.all("a")[1:]] == [s["id"] for s in page.all("section")]


def test_the_numbers_are_the_run_s(written):
    runs, _, _, page = written
    naive = Trajectory.load(str(runs["naive"]))
    for experience in (1, 2):
        r = naive.reactivations[experience]
        row = page.text.split(f"naive, task {experience} → {experience + 1}", 1)[1][:120]
        assert f" {r.ratio:.3g} " in row.replace(",", "") or f" {r.ratio:.1f} " in row.replace(",", "")
        assert f"{r.norm_dip:.3g}" in row or f"{r.norm_dip:.2f}" in row
    assert "Accuracy on task 1 went from 1.000 to 0.000 (forgetting 1.000)." in page.text
    assert "KernelError: <b>not</b> finite" in page.text
    assert "3.00e-07" in page.text  # the spot check
    assert "tasks Exp000 and Exp001: 0.500" in written[2]
    assert "What differs between the runs" in page.text


def test_tables_and_figures_lie_beside_the_page(written):
    _, done, _, _ = written
    assert [path.name for path in done.tables] == [
        *("boundaries.csv", "measurements.csv"),
        *("seeds.csv", "seeds.md", "seeds.tex"),
    ]
    assert done.tables[1].read_text().count("\n") == 1 + 2 * 27
    names = {path.stem for path in done.figures}
    evil = "script-alert-x-script"
    assert names == {
        *("boundaries", "curves", "linearisation", "features"),
        *(f"{what}-{run}" for what in ("spectrum", "layers", "overlap") for run in ("naive", evil)),
        *(f"kernels-{run}-{boundary}" for run in ("naive", evil) for boundary in (1, 2)),
    }
    for path in done.figures:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        width, _ = struct.unpack(">II", content[16:24])
        assert width == 990  # 3.3 inches at 300 dots an inch: one column of a paper


# ---------------------------------------------------------------------- what is missing


def sections_of(path, **arguments):
    runs, unreadable = read_runs(path)
    return {s.ident: Parsed(s.body).text for s in Report(runs, None, [], unreadable).sections()} | arguments


def test_one_experience_without_evaluations(make_run):
    found = sections_of(make_run("alone", experiences=1, accuracies=None))
    assert found["answer"] == "alone : it has one experience and no boundary; the kernel is followed below."
    assert "No accuracy of the probe's task was recorded by alone: evaluate with accuracy_metrics" in found["curves"]
    assert found["reactivation"].startswith(
        "No run has a boundary with an experience before it that was measured to its end."
    )
    assert found["kernels"] == "There is no boundary yet."
    assert found["layers"].startswith("Layers were not measured: use")
    assert found["linearity"].startswith(
        "The linearisation was not measured: use ntk_metrics(ntk, linearisation=True)."
    )
    assert found["overlap"].startswith("Task overlap was not measured: ")


def test_kernels_that_were_not_kept(make_run):
    found = sections_of(make_run(keep_kernels=False))
    assert "could not be shown: measurement" in found["kernels"]
    assert "the plugin was made with keep_kernels=False" in found["kernels"]
    assert "effective rank" in found["spectra"]  # from the numbers alone


def test_kernels_that_are_gone_or_damaged(make_run):
    path = make_run(experiences=2)
    (path / "kernels" / "Exp000" / "000009.safetensors").unlink()  # the boundary
    (path / "kernels" / "Exp000" / "000017.safetensors").write_bytes(b"x" * 100)  # the end
    found = sections_of(path)
    assert "2 kernels could not be shown: run folder" in found["kernels"]
    assert "the file is missing" in found["kernels"]


def test_numbers_that_no_axis_can_hold_are_not_drawn(make_run):
    path = make_run(experiences=2)
    lines = [json.loads(line) for line in (path / "measurements.jsonl").read_text().splitlines()]
    odd = [1e300, -1e300, {"nonfinite": "inf"}, {"nonfinite": "nan"}, 1e-300, 0]
    for number, line in enumerate(lines):
        if line["kind"] == "measurement":
            line["values"] = dict.fromkeys(line["values"], odd[number % len(odd)])
        for name in ("base", "peak", "norm_dip", "norm_recovery", "spike"):
            if line["kind"] == "reactivation":
                line["reactivation"][name] = odd[number % 3]
    lines.append({"kind": "evaluation", "experience": 1, "iteration": 10**18, "values": [1]})
    (path / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = sections_of(path)
    assert "a record of kind evaluation cannot be used (AttributeError: " in found["answer"]


def test_nothing_but_failures(make_run):
    found = sections_of(make_run("bad", experiences=1, fail=tuple(range(9))))
    assert found["answer"] == "bad : all 9 measurements failed, so nothing is known of the kernel."
    assert "the measurement at iteration 0 failed: KernelError: <b>not</b> finite" in found["trust"]
    assert "bad: 4 more measurements failed." in found["trust"]


def test_nothing_measured_yet(make_run):
    found = sections_of(make_run("new", experiences=0))
    assert found["answer"] == "new : nothing was measured on probe Exp000."
    assert found["curves"] == "Nothing was measured."


def test_an_unreadable_neighbour_is_said(make_run, tmp_path):
    make_run("runs/good", experiences=1)
    (make_run("runs/bad", experiences=1) / "run.json").write_text("[]")
    assert "Some data could not be used: run folder" in sections_of(tmp_path / "runs")["answer"]


def test_a_run_without_probes_is_refused(tmp_path):
    RunFolder.create(tmp_path / "run", {}).close()
    with pytest.raises(RunFolderError) as caught:
        write_report(tmp_path / "run", tmp_path / "out")
    assert str(caught.value) == (
        f"there is nothing to report: {tmp_path / 'run'} holds no probe yet. A probe exists once training has begun."
    )
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- the answer


def run_with(make_run, reactivations, **arguments):
    run = read_run(make_run("r", **arguments))
    run.trajectories["Exp000"].reactivations.clear()
    run.trajectories["Exp000"].reactivations.update(reactivations)
    return run


def at(experience, **values):
    return Reactivation(40.0 * experience, 40.0 * experience + 40, cadence=(5.0, 5.0), **values)


def test_the_answer_in_numbers(make_run):
    faster = at(1, spike=2e-3, ratio=4.0, norm_dip=0.5, norm_recovery=0.9, alignment_drop=0.25, peak=1.0)
    slower = at(2, spike=-1e-3, ratio=0.5, norm_dip=0.8, norm_recovery=1.2, alignment_drop=-0.1, peak=1.0)
    run = run_with(make_run, {0: at(0), 1: faster, 2: slower})
    assert answer(run) == (
        "r: at 1 of 2 boundaries the kernel then moved faster than before: its peak velocity was between 0.50 and 4.0 "
        "times the velocity before (median 2.2), a spike of between −0.0010 and 0.0020 per iteration. λ_max fell to "
        "between 0.50 and 0.80 of its value at the boundary and was between 0.90 and 1.2 times that value when "
        "the new task ended. Alignment with the labels dropped by up to 0.25. Accuracy on task 1 went from 1.000 to "
        "0.000 (forgetting 1.000). On the whole test stream it ended at 0.500."
    )


def test_the_answer_where_nothing_is_defined(make_run):
    run = run_with(make_run, {0: at(0), 1: at(1, reasons={"spike": "it was not measured"})}, accuracies=None)
    assert (
        answer(run)
        == "r: No spike can be given at 1 boundary: it was not measured. Accuracy on task 1 was not recorded."
    )


def test_the_verdict_beside_a_control(make_run):
    run = run_with(make_run, {0: at(0), 1: at(1, spike=2e-3, ratio=4.0, peak=1.0, at_floor=False)})
    control = read_run(make_run("control"))
    for spike, words in ((1e-3, "above it at 1 of 1 boundary."), (3e-3, "above it at 0 of 1 boundary.")):
        series = control.trajectories["Exp000"].reactivations
        series[1] = at(1, spike=spike, ratio=2.0, peak=1.0, at_floor=False)
        assert answer(run, controls=[control]).endswith(f"Verdict beside 1 control: {words}")
    series[1] = Reactivation(40.0, 80.0, spike=1.0, ratio=1.0, at_floor=False, cadence=(10.0, 5.0))
    told = "No verdict: none of 1 control matches: control: velocities of different cadences are not comparable"
    assert told in answer(run, controls=[control])
    other = read_run(make_run("other", probe="mine", experiences=1))
    assert answer(run, controls=[other]).endswith("No verdict: none of 1 control matches: other has no probe 'Exp000'.")


def test_what_must_be_known_before_comparing(make_run):
    one = run_with(make_run, {0: at(0), 1: at(1, spike=1.0, ratio=2.0, at_floor=True)})
    other = read_run(make_run("other", seed=1, cadence="epoch_end"))
    found = cautions([one, other], None, {})
    assert [sentence.split(":")[0] for sentence in found] == [
        "No verdict without a control",
        "The runs were measured at different times ('epoch_end', 'every_iterations",
        "The runs were measured on different probes (their hashes differ)",
        "The velocity before is below the noise, so the ratio is a lower bound",
    ]
    assert found[-1].endswith("r at boundary 1 → 2.")
    assert cautions([one], None, {"r": [other]}) == found[-1:]


def test_a_sweep_s_controls_give_the_verdicts_and_are_not_reported_themselves(make_run, tmp_path):
    for name, control, seed in (("a", False, 0), ("b", True, 1)):
        tags = {"sweep": "s", "label": name, "control": control, "values": {} if control else {"width": 8}}
        make_run(f"runs/{name}", experiences=2, seed=seed, meta={"tags": tags})
    report = Report(read_runs(tmp_path / "runs")[0], None, [])
    assert [run.name for run in report.runs] == ["a"]
    assert [run.name for run in report.controls["a"]] == ["b"]
    found = Parsed(report.reactivation().body).text
    words = "(above the controls|not distinguishable)"
    assert re.search(rf"a, task 1 → 2: {words}: spike [^ ]+ and ratio [^ ]+ against", found)


# ---------------------------------------------------------------------- figures


def test_lines_are_told_apart_in_grey_and_in_colour():
    looks = [look(i) for i in range(14)]
    assert len({(str(one["color"]), str(one["linestyle"])) for one in looks}) == 14
    assert len({str(one["linestyle"]) for one in looks[:7]}) == len(STYLES) == len(COLOURS) == 7


def test_the_moments_around_a_boundary(make_run):
    trajectory = read_run(make_run()).trajectory()
    trajectory.reactivations[1] = at(1, time_to_peak=10.0)
    assert [(title, m.clock.iteration) for title, m in boundary_moments(trajectory, 1)] == [
        ("before: at the boundary", 40),
        ("after: at the peak velocity", 50),
        ("after: end of the new task", 80),
    ]
    assert boundary_moments(trajectory, 7) == []


def test_files_for_a_paper_are_the_same_each_time(make_run):
    figure = four_panels({"_$x^$ name": make_run(experiences=2), "b": make_run("b", seed=1, experiences=1)})
    for kind, start in (("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")):
        content = to_bytes(figure, kind)
        assert content.startswith(start)
        assert content == to_bytes(figure, kind)
    assert len(figure.axes) == 4
    assert figure.legends[0].get_texts()[0].get_text() == "_$x^$ name"


def test_lines_of_the_curves_are_the_numbers(make_run):
    path = make_run(experiences=2)
    figure = four_panels({"a": path})
    trajectory = Trajectory.load(str(path))
    (line,) = [x for x in figure.axes[0].lines if len(x.get_xdata()) > 2]
    np.testing.assert_array_equal(line.get_xdata(), [m.clock.iteration for m in trajectory])
    np.testing.assert_array_equal(line.get_ydata(), [m.values["spectral_norm"] for m in trajectory])
    starts = [x for x in figure.axes[0].lines if len(x.get_xdata()) == 2]
    assert [(list(x.get_xdata()), x.get_linewidth() > 0) for x in starts] == [([0, 0], False), ([40, 40], True)]


def test_matplotlib_s_global_state_is_left_alone(make_run):
    code = (
        "import sys, matplotlib\n"
        "def settings(): return {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if 'backend' not in k}\n"
        "before = settings()\n"
        "from avalanche_ntk.report import four_panels\n"
        f"four_panels({{'a': {str(make_run(experiences=1))!r}}})\n"
        "print(before == settings(), 'matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False False\n"


def test_figures_of_names_that_differ_in_signs_only_have_files_of_their_own():
    assert _file_names(["a b", "a/b", "A-b", "…"]) == {"a b": "a-b", "a/b": "a-b-2", "A-b": "A-b-3", "…": "figure"}


# ---------------------------------------------------------------------- where it is written


def test_formats_are_checked(make_run, tmp_path):
    with pytest.raises(ArgumentError) as caught:
        write_report(make_run(experiences=0), tmp_path / "out", formats=["pgn"])
    assert str(caught.value) == (
        "unknown figure format 'pgn': expected one of 'pdf', 'png', 'svg'. Did you mean 'png'?"
    )


def test_nothing_of_somebody_else_s_is_replaced(make_run, tmp_path):
    path = make_run("run", experiences=0)
    with pytest.raises(RunFolderError) as caught:
        write_report(path, path)
    assert str(caught.value) == (
        f"{path} is a run folder; reports are not written into run folders: choose another --out, such as "
        f"{tmp_path / 'report'}."
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError) as caught:
        write_report(path, tmp_path / "file")
    assert str(caught.value) == (
        f"{tmp_path / 'file'} exists and is not a folder: choose another --out for the report."
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("my thesis")
    with pytest.raises(RunFolderError) as caught:
        write_report(path, tmp_path / "mine")
    assert str(caught.value) == (
        f"{tmp_path / 'mine' / 'report.html'} exists and was not written by this command, or was changed since: it is "
        "not replaced. Choose another --out, or move the file away."
    )
    assert (tmp_path / "mine" / "report.html").read_text() == "my thesis"


def test_a_figure_of_the_user_s_is_not_replaced_and_an_own_one_is(make_run, tmp_path):
    path, out = make_run("run", experiences=2, keep_kernels=False), tmp_path / "out"
    mine = out / "figures" / "curves.pdf"
    mine.parent.mkdir(parents=True)
    mine.write_text("my own")
    with pytest.raises(RunFolderError, match=r"curves\.pdf exists and was not written by this command"):
        write_report(path, out, formats=["pdf"])
    assert [p.name for p in out.rglob("*") if p.is_file()] == ["curves.pdf"]  # nothing was written
    mine.unlink()
    done = write_report(path, out, formats=["pdf"])
    written = {p.relative_to(out).as_posix() for p in (done.page, *done.figures, *done.tables)}
    assert set(json.loads((out / "written.json").read_text())["files"]) == written
    write_report(path, out, formats=["pdf"], title="again")
    assert "again" in done.page.read_text()
    mine.write_text("changed by hand")
    with pytest.raises(RunFolderError, match="or was changed since: it is not replaced"):
        write_report(path, out, formats=["pdf"])
    assert mine.read_text() == "changed by hand"


def test_the_command(make_run, tmp_path, monkeypatch, capsys):
    make_run("runs/a", experiences=0)
    (make_run("runs/b", experiences=0) / "run.json").write_text("[]")
    out = tmp_path / "out"
    for _ in range(2):  # the second replaces the first
        monkeypatch.setattr(
            sys, "argv", ["avalanche-ntk", "report", str(tmp_path / "runs"), "--out", str(out), "--format", "svg"]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        printed, complaints = capsys.readouterr()
        assert printed == f"Page:    {out / 'report.html'}\nTables:  {out / 'tables'}\n"
        assert f"avalanche-ntk: left out: run folder {tmp_path / 'runs' / 'b'}: run.json cannot be used" in complaints
    monkeypatch.setattr(sys, "argv", ["avalanche-ntk", "report", str(tmp_path / "gone"), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith(
        f"avalanche-ntk: there is no run folder {tmp_path / 'gone'}: nothing exists at that path. Check it.\n"
    )
