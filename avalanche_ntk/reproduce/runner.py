"""Run a study: its runs and measurements, resumed if they exist, then its verdicts and figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avalanche_ntk.children import pool_of
from avalanche_ntk.errors import ArgumentError, NTKError, ended
from avalanche_ntk.experiments.launch import Workers
from avalanche_ntk.experiments.sweep import Outcome as RunOutcome
from avalanche_ntk.experiments.sweep import Sweep, load_sweep, run_sweep
from avalanche_ntk.files import write_whole
from avalanche_ntk.owned import refuse_strangers
from avalanche_ntk.reproduce.deciding import decided
from avalanche_ntk.reproduce.registry import Scale, load_study
from avalanche_ntk.reproduce.results import Results, read_measured, without_repeats
from avalanche_ntk.reproduce.study import Context, Place, Plan
from avalanche_ntk.reproduce.verdicts import Claim, Verdict
from avalanche_ntk.reproduce.writing import Setting, write_results

FORMAT = 1  # version of the files of `measured/`: files of other versions are made again
TINY_SEEDS, SEEDS = 2, 5

Progress = Callable[[str, int, int], None]


class StudyError(NTKError):
    """Runs or measurements of a study failed, so it cannot be judged."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a study.

    Attributes:
        claims: Its statements with their findings.
        out: Its folder.
        files: The written files: `results.json`, `results.md`, the figures.
    """

    claims: tuple[Claim, ...]
    out: Path
    files: tuple[Path, ...]


def reproduce(
    name: str,
    out: str | Path | None = None,
    *,
    scale: str = "small",
    data: str = "digits",
    data_root: str | None = None,
    seeds: int | None = None,
    first_seed: int = 0,
    budget: int | None = None,
    jobs: int = 1,
    device: str = "cpu",
    on_progress: Progress = lambda what, done, total: None,
) -> Outcome:
    """Reproduce a published result, or answer an open question, and write the findings.

    Complete parts in the folder are kept: call it again to resume. Worker processes import the calling script, so call
    it below `if __name__ == "__main__":`.

    Args:
        name: A key of `STUDIES`.
        out: Its folder; None for `reproduced/NAME-SCALE`.
        scale: "tiny" (seconds), "small" (minutes on two cores; one study up to an hour and a half) or "paper" (the
            published setting, for a GPU).
        data: Argument of `benchmarks.load_data`; by default the digits, which need no download.
        data_root: Folder of torchvision's datasets.
        seeds: Number of seeds; None for 5, or 2 at the scale "tiny".
        first_seed: The least seed; the others follow it. A study whose settings were chosen on some seeds is judged on
            others.
        budget: Maximum number of seeds: while a statement is undecided, `seeds` more are added at a time, up to the
            budget. None for `seeds`, that is, a single look.
        jobs: Number of parallel runs and measurements, each on one core.
        device: Device for training and measuring.
        on_progress: Called with a description and the numbers of finished and of all parts.

    Returns:
        The claims with their verdicts, and the files.

    Raises:
        ArgumentError: The study or scale is unknown, or a number is out of range.
        StudyError: Runs or measurements failed; the message names the first.
    """
    study = load_study(name)
    if scale not in [s.value for s in Scale]:
        raise ArgumentError(f"scale must be one of {', '.join(repr(s.value) for s in Scale)}, found {scale!r}.")
    at = Scale(scale)
    count = (TINY_SEEDS if at is Scale.TINY else SEEDS) if seeds is None else seeds
    most = count if budget is None else budget
    for what, number, least in (("seeds", count, 1), ("first_seed", first_seed, 0), ("jobs", jobs, 1)):
        if number < least:
            raise ArgumentError(f"{what} must be {least} or more, found {number}.")
    if most < count or most % count:
        raise ArgumentError(
            f"budget must be a multiple of the {count} seeds that are added at a time, found {most}. "
            f"Give {max(1, most // count) * count}, for example."
        )
    place = Place(Path(out) if out is not None else Path("reproduced") / f"{name}-{scale}")
    refuse_strangers(place.out, ["results.json", "results.md"])  # before the runs, which may take hours
    begin = time.perf_counter()
    looks: list[int] = []
    judged: list[Sequence[Claim]] = []  # at each look
    planned = most // count
    while True:
        looks.append(count * (len(looks) + 1))
        context = Context(at, data, data_root, tuple(range(first_seed, first_seed + looks[-1])), device)
        sweeps = _run_plans(study.plans(context), context, place, jobs, on_progress)
        parts = study.parts(context)
        _measure_parts(name, parts, context, place, jobs, on_progress)
        results = Results(context, place, sweeps)
        judged.append(study.judge(results))
        claims = tuple(decided(of_looks, looks, planned) for of_looks in zip(*judged, strict=True))
        if len(looks) == planned or not any(f.verdict is Verdict.OPEN for c in claims for f in c.findings):
            break
    seconds = time.perf_counter() - begin
    setting = Setting(name, context, jobs, seconds, results.seconds(parts), count, budget)
    files = write_results(place.out, setting, claims, study.draw(results))
    return Outcome(claims, place.out, tuple(files))


def _run_plans(
    plans: Mapping[str, Plan], context: Context, place: Place, jobs: int, on_progress: Progress
) -> dict[str, Sweep]:
    made = {plan: load_sweep({**keys, "seeds": list(context.seeds)}, name=plan) for plan, keys in plans.items()}
    failures: list[str] = []
    with Workers() as workers:
        for plan, sweep in without_repeats(made).items():

            def tell(outcomes: Sequence[RunOutcome], plan: str = plan) -> None:
                on_progress(plan, sum(o.state in ("done", "skipped", "failed") for o in outcomes), len(outcomes))

            done = run_sweep(sweep, place.sweep(plan), jobs=jobs, on_change=tell, workers=workers)
            failures += [f"{plan}: {o.planned.name}: {o.error}" for o in done.failures]
    _refuse(failures, "runs", sum(len(sweep.runs) for sweep in made.values()))
    return made


def _measure_parts(
    name: str,
    parts: Mapping[str, Mapping[str, Any]],
    context: Context,
    place: Place,
    jobs: int,
    on_progress: Progress,
) -> None:
    units = [(part, seed) for part in parts for seed in context.seeds]
    todo = [(part, seed) for part, seed in units if not _is_there(place.measured(part, seed), parts[part], context)]
    if not todo:
        return
    done = len(units) - len(todo)
    failures: list[str] = []
    on_progress("measurements", done, len(units))
    with pool_of(jobs) as pool:
        running: dict[Future[None], str] = {
            pool.submit(_measure, name, context, part, dict(parts[part]), seed, place.measured(part, seed)): (
                f"{part}, seed {seed}"
            )
            for part, seed in todo
        }
        for future in as_completed(running):
            try:
                future.result()
            except BrokenProcessPool:
                failures.append(f"{running[future]}: its process was terminated")
            except Exception as error:  # noqa: BLE001  (told below; the others are made all the same)
                failures.append(f"{running[future]}: {type(error).__name__}: {' '.join(str(error).split())}")
            done += 1
            on_progress("measurements", done, len(units))
    _refuse(failures, "measurements", len(units))


def _refuse(failures: Sequence[str], what: str, total: int) -> None:
    if failures:
        raise StudyError(
            f"{len(failures)} of {total} {what} failed, the first: {ended(failures[0])} Fix the cause and call it "
            "again: complete parts are kept."
        )


def _measure(name: str, context: Context, part: str, arguments: dict[str, Any], seed: int, path: Path) -> None:
    """Measure one part with one seed, in a separate process."""
    import torch
    from threadpoolctl import threadpool_limits

    from avalanche_ntk.experiments.quiet import without_avalanches_own_warnings

    # A GPU needs only one thread; on the CPU sums depend on the number of threads.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    begin = time.perf_counter()
    with threadpool_limits(1), without_avalanches_own_warnings():
        values = load_study(name).measure(context, arguments, seed)
    record = {**_identity(arguments, context), "seed": seed, "values": values, "seconds": time.perf_counter() - begin}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record))


def _identity(arguments: Mapping[str, Any], context: Context) -> dict[str, Any]:
    return {"format": FORMAT, "data": context.data, "scale": str(context.scale), "arguments": dict(arguments)}


def _is_there(path: Path, arguments: Mapping[str, Any], context: Context) -> bool:
    try:
        found = read_measured(path)
    except (OSError, ValueError):
        return False
    expected = json.loads(json.dumps(_identity(arguments, context)))
    same: bool = {key: found.get(key) for key in expected} == expected
    return same
