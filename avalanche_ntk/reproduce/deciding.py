"""The decision rule for statements: batches of seeds, many cases, and practical equivalence.

The rule guarantees that a statement gets a wrong verdict in any of its cases in at most 5 of 100 studies. A case is
decided as soon as an adjusted interval of its mean lies on one side of the threshold, or within the margin of practical
equivalence around it (two one-sided tests). The interval is adjusted for:

- **repeated looks**: with K planned looks each has the level α/K (Bonferroni). A case stays decided unless the plain
  interval of all seeds so far contradicts it: then it is undecided again, which only makes wrong verdicts rarer;
- **many cases**: within a look the cases share the level by Holm's procedure, the clearest first;
- **both sides**: every wrong verdict of either kind requires an interval that misses the mean.

Sources: Student 1908; Holm 1979; Schuirmann 1987 (two one-sided tests); Pocock 1977 (group-sequential designs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit

from avalanche_ntk.reproduce.verdicts import FEWEST, Claim, Finding, Verdict

ALPHA = 0.05


@dataclass(frozen=True)
class Evidence:
    """Evidence of n seeds about a mean.

    Attributes:
        mean: Mean of the defined numbers.
        error: Its standard error, `s/√n`.
        n: Number of defined numbers.
    """

    mean: float
    error: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Evidence:
        """Return the evidence of some numbers; non-finite ones are left out."""
        finite = [v for v in values if math.isfinite(v)]
        n = len(finite)
        if n < 2:
            return Evidence(finite[0] if finite else math.nan, math.nan, n)
        return Evidence(float(np.mean(finite)), float(np.std(finite, ddof=1) / math.sqrt(n)), n)

    def interval(self, level: float) -> tuple[float, float]:
        """Return Student's interval that misses the mean with probability `level`."""
        half = float(stdtrit(self.n - 1, 1 - level / 2)) * self.error
        return self.mean - half, self.mean + half

    def level_that_decides(self, threshold: float, margin: float) -> float:
        """Return the smallest level at which the interval decides; a smaller level means a clearer case.

        Args:
            threshold: Threshold for the mean.
            margin: Half-width of practical equivalence; NaN for none.

        Returns:
            Two-sided p-value of a difference, or of two one-sided tests for its absence, whichever is smaller.
        """
        if self.n < FEWEST:
            return 1.0
        distance = abs(self.mean - threshold)
        p = self._tail(distance)
        if math.isfinite(margin) and distance < margin:
            p = min(p, self._tail(margin - distance))
        return p

    def _tail(self, distance: float) -> float:
        if self.error == 0:
            return 0.0
        return 2 * float(stdtr(self.n - 1, -distance / self.error))

    def verdict(self, threshold: float, margin: float, above: bool, level: float) -> Verdict:
        """Return the verdict of the interval at a level on the claim that the mean is above (or below) a threshold."""
        found = (v for v in _DECIDED if self.shows(v, threshold, margin, above, level))
        return next(found, Verdict.OPEN)

    def shows(self, verdict: Verdict, threshold: float, margin: float, above: bool, level: float) -> bool:
        """Return whether the interval at a level shows a verdict other than "undecided"."""
        if self.n < FEWEST:
            return False
        low, high = self.interval(level)
        if verdict is Verdict.HOLDS:
            return low > threshold if above else high < threshold
        if verdict is Verdict.FAILS:
            return high <= threshold if above else low >= threshold
        return math.isfinite(margin) and threshold - margin < low and high < threshold + margin


_DECIDED = (Verdict.HOLDS, Verdict.FAILS, Verdict.SAME)


@dataclass(frozen=True)
class Question:
    """The question for one case.

    Attributes:
        threshold: Threshold for the mean.
        above: Whether it is claimed to be above (otherwise below).
        margin: Differences below this do not matter; NaN if every difference does.
    """

    threshold: float
    above: bool = True
    margin: float = math.nan


def decide(
    questions: Sequence[Question], looks: Sequence[Sequence[Evidence]], planned: int, alpha: float = ALPHA
) -> list[tuple[Verdict, int]]:
    """Decide the m cases of one statement after some of the planned looks.

    Args:
        questions: One question per case.
        looks: For each look so far, the evidence in each case.
        planned: Total number of planned looks; each has the level `alpha / planned`.
        alpha: Largest probability of a wrong verdict in any of the cases.

    Returns:
        For each case its verdict and the number of the look (from 1) at which it was decided; 0 if undecided.

    Raises:
        ValueError: There are more looks than planned.
    """
    if len(looks) > planned:
        raise ValueError(f"{len(looks)} looks were made, of {planned} planned: the level of each is a share of all.")
    found = [(Verdict.OPEN, 0)] * len(questions)
    for number, evidence in enumerate(looks, 1):
        open_ = [i for i, (verdict, _) in enumerate(found) if verdict is Verdict.OPEN]
        clearness = {i: evidence[i].level_that_decides(questions[i].threshold, questions[i].margin) for i in open_}
        remaining = len(open_)
        for i in sorted(open_, key=clearness.__getitem__):
            q = questions[i]
            verdict = evidence[i].verdict(q.threshold, q.margin, q.above, alpha / planned / remaining)
            if verdict is Verdict.OPEN:
                break
            found[i] = verdict, number
            remaining -= 1
    for i, (verdict, _) in enumerate(found):
        q = questions[i]
        if verdict is not Verdict.OPEN and not looks[-1][i].shows(verdict, q.threshold, q.margin, q.above, alpha):
            found[i] = Verdict.OPEN, 0
    return found


def decided(looks: Sequence[Claim], seeds: Sequence[int], planned: int) -> Claim:
    """Return a statement with the verdicts of the rule instead of those of each case's own interval.

    The evidence of a look is that of the statement as judged with the seeds of that look: a seed's number may depend on
    the other seeds, such as a correlation minus that with other seeds' series.

    Args:
        looks: The statement as judged at each look so far; its findings have one number per seed of that look.
        seeds: Numbers of seeds at these looks, such as (5, 10).
        planned: Total number of planned looks.

    Returns:
        The statement of the last look; findings decided with fewer seeds have a note.
    """
    claim = looks[-1]
    judged = [f for f in claim.findings if f.verdict is not None]
    at_looks = [{(f.case, f.statistic): f.values for f in look.findings} for look in looks]
    # A case that an earlier look did not have (a step size at which more seeds learn) had no evidence then.
    evidence = [[Evidence.of(values.get((f.case, f.statistic), ())) for f in judged] for values in at_looks]
    verdicts = decide([Question(f.threshold, f.above, f.margin) for f in judged], evidence, planned)
    made = {id(f): _with(f, verdict, look, seeds) for f, (verdict, look) in zip(judged, verdicts, strict=True)}
    return replace(claim, findings=tuple(made.get(id(f), f) for f in claim.findings))


def _with(finding: Finding, verdict: Verdict, look: int, seeds: Sequence[int]) -> Finding:
    notes = [finding.note] if finding.note else []
    if verdict is Verdict.SAME:
        notes.append(f"no difference larger than {finding.margin:.3g}")
    if 0 < look < len(seeds):
        notes.append(f"decided after {seeds[look - 1]} seeds")
    return replace(finding, verdict=verdict, note="; ".join(notes))
