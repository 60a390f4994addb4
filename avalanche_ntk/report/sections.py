"""The report's sections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from avalanche_ntk.recorder.labels import order_told
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report.answer import answer, boundaries_of, cautions
from avalanche_ntk.report.boundaries import lost
from avalanche_ntk.report.boundary_figure import boundary_figure
from avalanche_ntk.report.figures import curves, starts_of
from avalanche_ntk.report.group_answer import answer_over_seeds, called
from avalanche_ntk.report.groups import Group, groups_of, verdicts, verdicts_over_seeds
from avalanche_ntk.report.kernel_figures import MOST_BOUNDARIES, kernel_maps, overlap_maps, spectrum_over_time
from avalanche_ntk.report.page import Section, bullets, details, figure, paragraph, table
from avalanche_ntk.report.part_figures import (
    FEATURE_PANELS,
    LINEARISATION_PANELS,
    MOST_LAYERS,
    column_figure,
    further_panels,
    layer_figure,
    layers_of,
)
from avalanche_ntk.report.runs import Overlap, Run
from avalanche_ntk.report.seed_figures import boundary_figure_of, curves_of
from avalanche_ntk.report.seeds import COLUMNS, NOTE, SeedTable, table_of
from avalanche_ntk.report.settings import flattened
from avalanche_ntk.report.style import COLUMN_INCHES, PAGE_INCHES, settle, to_inline_svg
from avalanche_ntk.report.text import MISSING, counted, escaped, iterations, listed, number, plain, share
from avalanche_ntk.report.trust import TRUST, trust_row

_MOST_FAILURES = 5
_MOST_OVERLAPS = 4
_MOST_LINES = 14
_MOST_NOTES = 100
_MOST_SINGLE = 8
_MOST_SINGLE_OF_SEEDS = 3


class Report:
    """Makes the sections for some runs, and collects their figures for a paper.

    Args:
        runs: The runs.
        probe: Name of the probe; None for each folder's first.
        controls: Runs in which no task changed, besides a sweep's own controls among the runs.
        unreadable: Unreadable runs, one sentence each.
        columns: Columns of the table over seeds.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        probe: str | None,
        controls: Sequence[Run],
        unreadable: Sequence[str] = (),
        columns: Sequence[str] = COLUMNS,
    ) -> None:
        self.columns = columns
        given = [run for run in runs if not run.is_control] or list(runs)
        self.runs = given
        self.probe = probe
        self.controls = {
            run.name: [*controls, *(other for other in runs if other.is_control_of(run))] for run in self.runs
        }
        self.groups = groups_of(self.runs)
        self.beside = groups_of([run for run in runs if run.is_control]) if len(given) < len(runs) else []
        # Runs that differ only in the seed are shown together: a paragraph, a row and a line per setting.
        self.over_seeds = any(len(group.runs) > 1 for group in self.groups)
        self.unreadable = list(unreadable)
        self.figures: dict[str, Figure] = {}
        self._count = 0
        # Limits for readability: lines in one figure, and figures of single runs.
        self.drawn = self.runs[:_MOST_LINES]
        self.drawn_groups = self.groups[:_MOST_LINES]
        first = [group.runs[0] for group in self.groups]
        self.single = first[:_MOST_SINGLE_OF_SEEDS] if self.over_seeds else self.runs[:_MOST_SINGLE]

    def sections(self) -> list[Section]:
        """Return all sections, the answer first."""
        return [
            self.answer(),
            self.curves(),
            self.reactivation(),
            self.spectra(),
            self.kernels(),
            self.layers(),
            self.linearity(),
            self.overlap(),
            self.further(),
            self.trust(),
            self.configuration(),
        ]

    # ------------------------------------------------------------------ the sections

    def answer(self) -> Section:
        """What happened at the boundaries, in sentences and one figure."""
        if self.over_seeds:
            answers = [answer_over_seeds(group, self.probe, self.controls) for group in self.groups]
            body = _answers(answers, [called(group) for group in self.groups])
            body += paragraph(f"Numbers are the {NOTE}.", "soft")
            body += self._drawn(
                "boundaries",
                lambda width: boundary_figure_of([*self.drawn_groups, *self.beside], self.probe, width=width),
                "At each boundary, means over the seeds with their 95 % intervals: the spike; the lowest λ_max after, "
                "as a share of λ_max at the boundary; the accuracy on the probe's own task after the new one. "
                "Hollow: the controls, in which no task changes.",
                " ".join(answers),
            )
        else:
            answers = [answer(run, self.probe, self.controls[run.name]) for run in self.runs]
            body = _answers(answers, [run.name for run in self.runs])
            body += self._drawn(
                "boundaries",
                lambda width: boundary_figure(self.drawn, self.probe, width=width),
                "At each boundary, in this order: the kernel's median velocity before and its peak after; the lowest "
                "λ_max after, and the one at the end of the new task, as shares of λ_max at the boundary; the accuracy "
                "on the probe's own task before and after the new task was learnt.",
                " ".join(answers),
            )
        problems = self.unreadable + [f"{run.name}: {problem}" for run in self.runs for problem in run.problems]
        body += bullets([*cautions(self.runs, self.probe, self.controls), *self._left_out()], "warn")
        if problems:
            body += paragraph("Some data could not be used:") + bullets(problems, "warn")
        return Section("answer", "What happened when the task changed", body, "Answer")

    def curves(self) -> Section:
        """The paper's four panels with accuracy beneath."""
        if not any(len(run.trajectory(self.probe)) for run in self.runs):
            return Section(
                "curves", "The kernel while the tasks are learnt", paragraph("Nothing was measured."), "Curves"
            )
        evaluated = [run for run in self.runs if run.accuracies(self.task_of(run))]
        body = self._drawn(
            "curves",
            lambda width: (
                curves_of(self.drawn_groups, self.probe, width=width)
                if self.over_seeds
                else curves(self.drawn, self.probe, width=width)
            ),
            "From above: λ_max, the distance 1 − CKA from the kernel at initialisation, the alignment with the labels, "
            "the velocity (distance per iteration), and the accuracy on the probe's task. Lines mark where a task "
            f"begins.{' Bands: 95 % intervals of the mean over the seeds.' if self.over_seeds else ''}",
            f"Curves over training iterations of {listed([one.name for one in self._lines()], 8)}. "
            + " ".join(self._ends(run) for run in (self.single if self.over_seeds else self.drawn)),
        )
        if len(evaluated) < len(self.runs):
            lacking = [run.name for run in self.runs if run not in evaluated]
            body += paragraph(
                f"No accuracy of the probe's task was recorded by {listed(lacking)}: evaluate with "
                "accuracy_metrics(experience=True), placed before ntk_metrics(...) in the evaluator.",
                "soft",
            )
        return Section("curves", "The kernel while the tasks are learnt", body, "Curves")

    def seeds(self) -> SeedTable:
        """The numbers of every boundary over the seeds, controls last."""
        return table_of([*self.groups, *self.beside], self.columns, self.probe)

    def _over_seeds(self) -> str:
        """Show that table, and the verdicts from the controls."""
        made = self.seeds()
        body = table(f"One row per boundary: {NOTE}", made.heads(), made.cells()) if made.rows else ""
        judged = [
            f"{group.name}, task {e} → {e + 1}: {v.verdict}: {v.reason}."
            for group in self.groups
            for e, v in verdicts_over_seeds(group, self.controls, self.probe).items()
        ]
        if judged:
            body += details("Verdicts over the seeds, beside the controls", bullets(judged), is_open=len(judged) < 9)
        return body

    def reactivation(self) -> Section:
        """The numbers of every boundary."""
        rows = []
        reasons: dict[str, None] = {}
        for run in self.runs:
            trajectory = run.trajectory(self.probe)
            for experience, r in boundaries_of(trajectory).items():
                accuracy, forgetting = lost(run, trajectory.probe, experience)
                half_life = iterations(r.half_life)
                if r.half_life_censored:
                    half_life = "not reached"
                rows.append(
                    [
                        f"{run.name}, task {experience} → {experience + 1}",
                        number(r.spike),
                        f"≥ {number(r.ratio)}" if r.at_floor else number(r.ratio),
                        number(r.z),
                        number(r.onset_ratio),
                        number(r.norm_dip),
                        number(r.norm_recovery),
                        number(r.alignment_drop),
                        number(r.moved),
                        iterations(r.time_to_peak),
                        half_life,
                        share(accuracy),
                        share(forgetting),
                    ]
                )
                for name, reason in r.reasons.items():
                    reasons[f"{run.name}, task {experience} → {experience + 1}, {name}: {reason}"] = None
        if not rows:
            body = paragraph("No run has a boundary with an experience before it that was measured to its end.")
        else:
            body = table("One row per boundary", [c for c, _ in _COLUMNS], rows, explained=dict(_COLUMNS[1:]))
        if self.over_seeds and rows:
            body = self._over_seeds() + details("The same for each run", body)
        onsets = [
            f"{run.name}: {number(r.onset)} per iteration"
            for run in self.runs
            for e, r in run.trajectory(self.probe).reactivations.items()
            if r.onset is not None and e not in boundaries_of(run.trajectory(self.probe))
        ]
        if onsets:
            body += paragraph(f"Peak velocity at the start of the first task, for comparison: {listed(onsets, 12)}.")
        judged = [] if self.over_seeds else self._verdicts()
        if judged:
            body += details("Verdicts beside the controls", bullets(judged), is_open=len(judged) < 9)
        if reasons:
            body += details("Why some numbers are missing", bullets(reasons))
        return Section("reactivation", "Reactivation at each boundary", body, "Reactivation")

    def spectra(self) -> Section:
        """The spectrum over time, a figure for each run."""
        body = ""
        for run in self.single:
            trajectory = run.trajectory(self.probe)
            missing: list[str] = []

            def draw(width: float, trajectory: Trajectory = trajectory, missing: list[str] = missing) -> Figure | None:
                drawn, missing[:] = spectrum_over_time(trajectory, width=width)
                return drawn

            made = self._drawn(
                f"spectrum-{run.name}",
                draw,
                "Eigenvalues of the kernel by rank, the largest first, and the effective rank of the centred kernel.",
                f"Eigenvalues of the kernel of {run.name} over training. " + self._ends(run),
            )
            made += _lacking(missing)
            if not made:
                made = paragraph("There are no kernels and no effective ranks to show.", "soft")
            body += self._of(run, made)
        return Section("spectra", "The spectrum over time", body, "Spectrum")

    def kernels(self) -> Section:
        """Heat maps before and after each boundary."""
        body = ""
        for run in self.single:
            trajectory = run.trajectory(self.probe)
            begun = [e for e, _ in starts_of(trajectory)][1:]
            made = ""
            missing: list[str] = []
            for experience in begun[:MOST_BOUNDARIES]:
                lacks: list[str] = []

                def draw(
                    width: float,
                    trajectory: Trajectory = trajectory,
                    experience: int = experience,
                    lacks: list[str] = lacks,
                ) -> Figure | None:
                    drawn, lacks[:] = kernel_maps(trajectory, experience, width=width)
                    return drawn

                made += self._drawn(
                    f"kernels-{run.name}-{experience}",
                    draw,
                    f"Kernel of the probe at the boundary from task {experience} to task {experience + 1}, "
                    f"{_ORDERS[order_told(trajectory.labels)]}; the colour is the cosine between two samples' "
                    "gradients.",
                    f"Heat maps of the kernel of {run.name} around the boundary from task {experience} to "
                    f"{experience + 1}. " + _block_means(trajectory, experience),
                )
                missing += lacks
            made += _lacking(missing)
            if len(begun) > MOST_BOUNDARIES:
                made += paragraph(f"The first {MOST_BOUNDARIES} of {len(begun)} boundaries are shown.", "soft")
            if not begun:
                made = paragraph("There is no boundary yet.", "soft")
            body += self._of(run, made)
        return Section("kernels", "The kernel before and after each boundary", body, "Heat maps")

    def layers(self) -> Section:
        """Layer by layer, a figure and a table for each run."""
        body = ""
        for run in self.single:
            trajectory = run.trajectory(self.probe)
            layers = layers_of(trajectory)
            if not layers:
                continue
            made = self._drawn(
                f"layers-{run.name}",
                partial(_layers, trajectory),
                "Distance from initialisation, velocity and share of the trace of the kernel of each layer's parameters"
                + (
                    f"; of {len(layers)} layers, the {MOST_LAYERS} that moved most."
                    if len(layers) > MOST_LAYERS
                    else "."
                ),
                f"Layer by layer in {run.name}: {layers[0].name} moved most, {number(layers[0].moved)} from its kernel "
                "at initialisation.",
            )
            made += details(
                f"Numbers of {counted(len(layers), 'layer')}",
                table(
                    f"Layers of {run.name}, those that moved most first",
                    ["layer", "distance from init", "peak velocity", "share of trace, first", "share of trace, last"],
                    [
                        [plain(x.name), number(x.moved), number(x.peak), share(x.share_first), share(x.share_last)]
                        for x in layers
                    ],
                ),
            )
            body += self._of(run, made)
        body = body or paragraph(
            "Layers were not measured: use ntk_metrics(ntk, per_layer=True) or observe=[PerLayer()].",
            "soft",
        )
        return Section("layers", "Layer by layer", body, "Layers")

    def linearity(self) -> Section:
        """The network against its linearisation, and the features' kernel."""
        body = self._drawn(
            "linearisation",
            lambda width: column_figure(self.drawn, LINEARISATION_PANELS, self.probe, width=width),
            "Relative error of the network linearised at the last boundary, and at initialisation: 0 if the kernel "
            "there explains the change since, 1 if it explains nothing.",
            "Error of the linearised network over training.",
        )
        if not body:
            body = paragraph("The linearisation was not measured: use ntk_metrics(ntk, linearisation=True).", "soft")
        features = self._drawn(
            "features",
            lambda width: column_figure(self.drawn, FEATURE_PANELS, self.probe, width=width),
            "The kernel of the features before the last layer: distance from initialisation, velocity, and alignment "
            "with the labels.",
            "Curves of the feature kernel over training.",
        )
        body += "<h3>The features</h3>" + (
            features or paragraph("The feature kernel was not measured: use ntk_metrics(ntk, features=True).", "soft")
        )
        return Section("linearity", "Is the static kernel enough?", body, "Linearisation")

    def overlap(self) -> Section:
        """Task overlap matrices, a figure for each run."""
        body = ""
        for run in self.single:
            ends = [o for o in run.overlaps if o.event == "experience_end"][-_MOST_OVERLAPS:]
            if not ends:
                continue
            last = ends[-1]
            pairs = [
                f"tasks {last.probes[i]} and {last.probes[j]}: {number(float(last.matrix[i, j]))}"
                for i in range(len(last.probes))
                for j in range(i + 1, len(last.probes))
            ]
            made = self._drawn(
                f"overlap-{run.name}",
                partial(_overlaps, ends),
                "Overlap of the gradients of two tasks' probes, "
                "‖Θ(X_i,X_j)‖² / (‖Θ(X_i,X_i)‖ ‖Θ(X_j,X_j)‖): 0 for tasks that share nothing.",
                f"Task overlap of {run.name} after task {last.experience + 1}: {listed(pairs, 6)}.",
            )
            body += self._of(run, made)
        body = body or paragraph(
            "Task overlap was not measured: use NTKPlugin(ProbeSpec.each_task(size=64)) with ntk_metrics(ntk, "
            "task_overlap=True).",
            "soft",
        )
        return Section("overlap", "Task overlap", body, "Overlap")

    def further(self) -> Section:
        """Declared numbers of observables that no other section shows."""
        body = self._drawn(
            "further",
            lambda width: column_figure(self.drawn, further_panels(self.drawn), self.probe, width=width),
            "Further numbers measured beside the kernel; their names are those of the columns of measurements.csv.",
            "Curves of further numbers over training.",
        )
        body = body or paragraph("No observable measured a number that is not shown above.", "soft")
        return Section("further", "What else was measured", body, "Further")

    def trust(self) -> Section:
        """How the kernels were computed, and failures."""
        rows = [trust_row(run, run.trajectory(self.probe)) for run in self.runs]
        body = table("How far the numbers can be trusted", [c for c, _ in TRUST], rows, explained=dict(TRUST[1:]))
        notes = []
        for run in self.runs:
            trajectory = run.trajectory(self.probe)
            failed = [m for m in trajectory if m.failure is not None]
            notes += [
                f"{run.name}: the measurement at iteration {m.clock.iteration:,} failed: {plain(m.failure, 300)}"
                for m in failed[:_MOST_FAILURES]
            ]
            if len(failed) > _MOST_FAILURES:
                notes.append(f"{run.name}: {len(failed) - _MOST_FAILURES} more measurements failed.")
            notes += [
                f"{run.name}, iteration {m.clock.iteration:,}: {plain(note, 300)}"
                for m in trajectory
                for note in m.notes
            ]
            undefined = Counter((name, reason) for m in trajectory for name, reason in m.reasons.items())
            notes += [
                f"{run.name}: {plain(name)} is undefined at {counted(count, 'measurement')}: {plain(reason, 300)}"
                for (name, reason), count in undefined.most_common(12)
            ]
        count = len(notes)
        if count > _MOST_NOTES:
            more = f"and {count - _MOST_NOTES:,} more, which are in the run folders."
            notes = [*notes[:_MOST_NOTES], more]
        if notes:
            body += details(
                f"Failures, notes and undefined numbers ({count:,})", bullets(notes), is_open=len(notes) < 9
            )
        return Section("trust", "How far to trust this", body, "Trust")

    def configuration(self) -> Section:
        """The settings of the runs: differences first, then all."""
        flat = [flattened(run) for run in self.runs]
        body = ""
        if len(self.runs) > 1:
            names = list(dict.fromkeys(name for one in flat for name in one))
            differing = [n for n in names if len({one.get(n) for one in flat}) > 1]
            if differing:
                body += table(
                    "What differs between the runs",
                    ["setting", *(run.name for run in self.runs)],
                    [[n, *(one.get(n, MISSING) for one in flat)] for n in differing],
                    words=True,
                )
            else:
                body += paragraph("The runs have the same settings.")
        for run, one in zip(self.runs, flat, strict=True):
            settings = table(f"Settings of {run.name}", ["setting", "value"], one.items(), words=True)
            body += details(f"All settings of {run.name}", settings, is_open=len(self.runs) == 1)
        return Section("configuration", "What was run", body, "Configuration")

    # ------------------------------------------------------------------ parts

    def task_of(self, run: Run) -> int:
        """Return the experience of the run's probe."""
        return run.experience_of(run.trajectory(self.probe).probe)

    def _verdicts(self) -> list[str]:
        """Return the verdict at each boundary, with its numbers."""
        lines = []
        for run in self.runs:
            found = verdicts(run.trajectory(self.probe), self.controls[run.name]) if self.controls[run.name] else {}
            for experience, v in found.items() if isinstance(found, dict) else ():
                lines.append(f"{run.name}, task {experience} → {experience + 1}: {v.verdict}: {v.reason}.")
        return lines

    def _left_out(self) -> list[str]:
        found = []
        every, what = (self.groups, "settings") if self.over_seeds else (self.runs, "runs")
        if len(every) > _MOST_LINES:
            found.append(f"Figures show the first {_MOST_LINES} of {len(every)} {what}; the tables show all.")
        if len(self.runs) > len(self.single):
            which = "of the first seed of the first" if self.over_seeds else "of the first"
            found.append(
                f"Spectra, heat maps, layers and task overlap are shown {which} {len(self.single)} {what}: make "
                "separate reports on the others."
            )
        return found

    def _lines(self) -> Sequence[Group] | Sequence[Run]:
        """Return the runs or groups that have a line in the curves."""
        return self.drawn_groups if self.over_seeds else self.drawn

    def _of(self, run: Run, body: str) -> str:
        """Put a single run's content under its name, if there are several runs."""
        return details(run.name, body, is_open=run is self.runs[0]) if len(self.runs) > 1 else body

    def _ends(self, run: Run) -> str:
        """Describe the begin and end of a run's curves, as alternative text."""
        good = [m for m in run.trajectory(self.probe) if m.failure is None]
        if not good:
            return f"{run.name} has no measurement."
        first, last = good[0], good[-1]
        return (
            f"{run.name}: from iteration {first.clock.iteration} to {last.clock.iteration}, λ_max goes from "
            f"{number(first.values.get('spectral_norm'))} to {number(last.values.get('spectral_norm'))}, the distance "
            f"from initialisation reaches {number(last.values.get('distance_init'))}, alignment ends at "
            f"{number(last.values.get('alignment'))}."
        )

    def _drawn(self, name: str, draw: Callable[[float], Figure | None], caption: str, description: str) -> str:
        """Draw a figure for a phone and for a wide window, and keep the narrow one for a paper."""
        narrow = draw(COLUMN_INCHES)
        if narrow is None:
            return ""
        settle(narrow)
        self.figures[name] = narrow
        wide = draw(PAGE_INCHES)
        assert wide is not None
        settle(wide)
        self._count += 1
        return figure(
            to_inline_svg(narrow, f"n{self._count}", description),
            to_inline_svg(wide, f"w{self._count}", description),
            caption,
        )


_COLUMNS = [
    ("boundary", ""),
    ("spike", "peak velocity after the boundary less the median velocity before, per iteration"),
    ("ratio", "peak over median before; always read beside the spike; ≥ if the velocity before is below the noise"),
    ("z", "the spike in robust standard deviations of the velocities before"),
    ("onset ratio", "peak over the peak velocity at the start of the first task"),
    ("λ_max dip", "lowest λ_max after the boundary over λ_max at it"),
    ("λ_max at end", "λ_max at the end of the new task over λ_max at the boundary"),
    ("alignment drop", "alignment at the boundary less the lowest after it"),
    ("moved", "distance 1 − CKA from the boundary to the end of the new task"),
    ("time to peak", "iterations from the boundary to the peak"),
    ("half-life", "iterations from the peak until half of the spike is gone"),
    ("accuracy", "on the probe's task, after the new task was learnt"),
    ("forgetting", "accuracy when the probe's task was first learnt minus accuracy now"),
]


def _layers(trajectory: Trajectory, width: float) -> Figure | None:
    return layer_figure(trajectory, width=width)


def _overlaps(overlaps: Sequence[Overlap], width: float) -> Figure:
    matrices = [(f"after task {o.experience + 1}", o.probes, o.matrix) for o in overlaps]
    return overlap_maps(matrices, width=width)


def _answers(answers: Sequence[str], names: Sequence[str]) -> str:
    """Return the answers as a list with emphasised run names."""
    items = [
        f"<li><strong>{escaped(name)}</strong>{escaped(text.removeprefix(name))}</li>"
        for text, name in zip(answers, names, strict=True)
    ]
    return f'<ul class="answer">{"".join(items)}</ul>'


_ORDERS = {
    "class": "samples sorted by class",
    "sample, by target": "samples sorted by their target",
    "sample": "samples in the probe's order",
}


def _lacking(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    reasons = list(dict.fromkeys(missing))
    return paragraph(f"{counted(len(reasons), 'kernel')} could not be shown: {listed(reasons, 2)}", "soft")


def _block_means(trajectory: Trajectory, experience: int) -> str:
    """Describe the similarity of gradients within and between classes, if measured."""
    ends = [m for m in trajectory if m.clock.experience == experience and m.failure is None]
    if not ends:
        return ""
    words = []
    for when, m in (("at the boundary", ends[0]), ("at the end of the task", ends[-1])):
        words.append(f"Alignment with the labels {when}: {number(m.values.get('alignment'))}.")
    return " ".join(words)
