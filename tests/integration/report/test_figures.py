"""Texts of figures can be read whatever is drawn; `tests/conftest.py` checks every figure that a test saves."""

import numpy as np
import pytest

from avalanche_ntk.report import four_panels, images
from avalanche_ntk.report.figures import curves
from avalanche_ntk.report.kernel_figures import mark_samples, overlap_maps
from avalanche_ntk.report.runs import read_runs
from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.sections import Report
from avalanche_ntk.report.style import COLUMN_INCHES, PAGE_INCHES, add_legend, drawing, new_figure, put_legend
from tests.integration.report.conftest import STEPS, Made
from tests.support.texts import check_texts

WIDTHS = (COLUMN_INCHES, PAGE_INCHES)
NAMES = [
    "WIDE CAPITALS, WIDTH=2048, REGIME=LAZY",
    "$x^$",
    "i",
    "a name of forty letters and then some more",
    "_",
    "b",
    "ö" * 60,
]


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize(
    "title", [None, "What happened", "A title of $many$ words, which says all there is to say about it, and more"]
)
def test_a_title_stands_above_the_names(make_run, count, title):
    runs = {NAMES[i]: make_run(f"run{i}", seed=i, experiences=2) for i in range(count)}
    figure = four_panels(runs, title=title)
    for kind in ("png", "svg"):
        check_texts(figure, format=kind)
    [legend] = figure.legends
    assert legend.get_title().get_text().startswith((title or "")[:60])
    assert legend.get_texts()[0].get_text() == NAMES[0]


@pytest.mark.parametrize("count", [1, 3, 5, 7])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_legend_has_as_many_columns_as_fit(width, count):
    with drawing():
        for put in (
            lambda f: add_legend(f, NAMES[:count]),
            lambda f: put_legend(f, f.axes[0].lines, ["$T = 10^{-7}$"] * count),
        ):
            figure = new_figure(width, 3.0)
            axis = figure.subplots()
            for _ in range(count):
                axis.plot([0, 1], [0, 1])
            put(figure)
            check_texts(figure)
    assert figure.legends[0]._ncols == min(count, 3 if width == COLUMN_INCHES else 7)


# From a hundredth of a decade to sixty, of the smallest numbers that are drawn and of ordinary ones.
SPANS = [(low, low * 10**decades) for decades in (0.01, 0.5, 1.2, 2.2, 9, 60) for low in (1e-90, 0.03)]


@pytest.mark.parametrize("size", [(1.4, 1.1), (2.4, 2.6)])
@pytest.mark.parametrize("which", ["x", "y"])
def test_labels_of_a_logarithmic_axis_have_room(which, size):
    with drawing():
        for low, high in SPANS:
            figure = new_figure(*size)
            axis = figure.subplots()
            axis.plot([low, high], [low, high])
            log_scale(axis, which)
            (axis.yaxis if which == "x" else axis.xaxis).set_visible(False)
            check_texts(figure, format="svg")
            figure.draw_without_rendering()
            labels = [t for t in (axis.get_xticklabels() if which == "x" else axis.get_yticklabels()) if t.get_text()]
            limits = sorted(axis.get_xlim() if which == "x" else axis.get_ylim())
            places = [t.get_position()[which == "y"] for t in labels]
            assert sum(limits[0] <= place <= limits[1] for place in places) >= (2 if max(size) > 2 else 1)


def test_labels_say_the_number_that_they_stand_at():
    with drawing():
        for low, high, expected in (
            (0.3, 900, ["0.5", "1", "2", "5", "10", "20", "50", "100", "200", "500"]),
            (0.3, 6000, ["1", "10", "100", "1000"]),
            (0.28, 1.1, ["0.4", "0.6", "0.8", "1"]),
            (2e-9, 3e-3, [rf"$\mathdefault{{10^{{{power}}}}}$" for power in range(-8, -2)]),
            (
                1.5e4,
                4e4,
                [rf"$\mathdefault{{{factor}\cdot10^{{4}}}}$" for factor in ("1.5", "2", "2.5", "3", "3.5", "4")],
            ),
        ):
            figure = new_figure(7.2 if high != 6000 else 2.0, 1.0)
            axis = figure.subplots()
            axis.set_xlim(low, high)
            log_scale(axis, "x")
            figure.draw_without_rendering()
            shown = [t.get_text() for t in axis.get_xticklabels() if low <= t.get_position()[0] <= high * (1 + 1e-9)]
            assert shown == expected


def test_the_first_layout_counts_the_ticks_that_are_drawn():
    # The axes become narrow, their ticks finer, and the labels longer than at first.
    with drawing():
        figure = new_figure(PAGE_INCHES, 3.0)
        axes = figure.subplots(1, 3, sharey=True)
        axes[0].plot([0, 1], [-15.3, -1.2])
        axes[0].set_ylabel("distance")
        for axis in axes:
            axis.plot([], [], label="a")
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22))
    check_texts(figure, format="svg")


@pytest.mark.parametrize("width", WIDTHS)
def test_tasks_of_very_different_length(make_run, width):
    made = Made(experiences=12, accuracies=[0.5] * 12)
    path = made.write(make_run("first", experiences=0).parent / "uneven")
    [run] = read_runs(path)[0]
    [trajectory] = run.trajectories.values()
    # The first tasks are short, the last is as long as a hundred of them.
    last = [m for m in trajectory.measurements if m.clock.experience == 11]
    for m in last[1:]:
        object.__setattr__(m.clock, "iteration", 11 * STEPS * 5 + 100 * m.clock.exp_iteration)
    figure = curves([run], width=width)
    check_texts(figure)
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert texts[0] == "task 1"
    assert len(texts) < 12


@pytest.mark.parametrize("tasks", [2, 25])
def test_every_figure_of_a_report(tmp_path, tasks):
    runs = {
        name: Made(
            experiences=tasks, accuracies=[0.5] * tasks, rich=True, seed=i, layers=("features.1", NAMES[0], "head")
        ).write(tmp_path / f"{i}")
        for i, name in enumerate((NAMES[0], NAMES[3]))
    }
    report = Report(read_runs(runs)[0], None, [])
    report.sections()  # which saves every figure for the page, for a phone and for a wide window
    kinds = {name.split("-")[0] for name in report.figures}
    assert kinds == {"boundaries", "curves", "spectrum", "kernels", "layers", "linearisation", "features", "overlap"}
    for figure in report.figures.values():
        check_texts(figure, format="pdf")


@pytest.mark.parametrize("classes", [[0, 1], list(range(10)), list(range(100)), [1000, 1001, 123456, 123457]])
@pytest.mark.parametrize("even", [True, False])
def test_names_of_many_and_of_small_classes(classes, even):
    labels = np.repeat(classes, 6) if even else np.concatenate([classes, [classes[-1]] * 300])
    kernel = np.eye(len(labels))
    check_texts(images.kernel_figure(kernel, labels, "experience start 3, iteration 123456"), format="png")
    with drawing():
        for size in (1.9, 2.2):
            figure = new_figure(size, size)
            axis = figure.subplots()
            axis.imshow(kernel)
            mark_samples(axis, labels)
            check_texts(figure)
    assert axis.get_xticklabels()[0].get_text() == str(classes[0])


@pytest.mark.parametrize("count", [2, 5, 20])
@pytest.mark.parametrize("naming", ["Exp{:03}", "probe.{}.of.a.long.name"])
def test_names_of_probes_beside_their_overlaps(count, naming):
    names = [naming.format(i) for i in range(count)]
    matrix = np.full((count, count), 0.25)
    matrix[0, 1] = np.nan
    figure = images.overlap_figure(matrix, names, "experience end 3, iteration 123456")
    check_texts(figure, format="png")
    told = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert told == {"0.25": "white", "–": "black"}
    for width in WIDTHS:
        for maps in (1, 6):
            check_texts(overlap_maps([(f"at boundary {i}", names, matrix) for i in range(maps)], width=width))


@pytest.mark.parametrize("spread", [1e-12, 1.0, 12.0])
def test_eigenvalues_of_any_spread(spread):
    values = 10.0 ** np.linspace(0, -spread, 64)
    check_texts(images.spectrum_figure(values, "experience start 3, iteration 123456"), format="png")
    check_texts(images.spectrum_figure(np.zeros(4), "a dead network"), format="png")
