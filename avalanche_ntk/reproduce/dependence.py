"""Dependence of a statement: the word that best separates cases in which it holds from the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scipy.stats import fisher_exact

LEVEL = 0.05
_NUMBER = re.compile(r"^(.*?)\s*=?\s*([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)$")


@dataclass(frozen=True)
class Dependence:
    """A division of the cases that is associated with the verdict.

    Attributes:
        what: The name of one part, such as "rich" or "width ≥ 1024".
        held: Number of its cases that hold, and number of its cases.
        others: The same for the other cases.
    """

    what: str
    held: tuple[int, int]
    others: tuple[int, int]

    def __str__(self) -> str:
        (a, n), (b, m) = self.held, self.others
        return f"{self.what} (holds in {a} of {n} with it, {b} of {m} without)"


def dependence(cases: Sequence[str], held: Sequence[bool]) -> Dependence | None:
    """Find the division of cases that explains the verdicts.

    A case is a list of words ("MLP, width 64, rich"). Each word, and for each word with a number each cut between two
    numbers, divides the cases in two; Fisher's exact test measures its association with the verdict. The best division
    is returned if its p-value, times the number of divisions tried (Bonferroni), is below 5 %.

    Args:
        cases: The decided cases.
        held: Whether the statement holds in each.

    Returns:
        The division, with the part that holds more often first; None if no division is significant.

    Source: Fisher 1922.

    >>> cases = [f"{regime}, width {w}" for w in (8, 16, 32, 64, 128) for regime in ("lazy", "rich")]
    >>> print(dependence(cases, [False, True] * 5))
    rich (holds in 5 of 5 with it, 0 of 5 without)
    """
    tried: dict[tuple[bool, ...], tuple[str, str]] = {}
    for what, division in _divisions(cases):
        key = tuple(division)
        if 0 < sum(key) < len(cases) and key not in tried and tuple(not i for i in key) not in tried:
            tried[key] = what
    best: tuple[float, Dependence] | None = None
    for inside, names in tried.items():
        a = sum(h for h, i in zip(held, inside, strict=True) if i)
        b, n = sum(held) - a, sum(inside)
        m = len(cases) - n
        p = fisher_exact([[a, n - a], [b, m - b]]).pvalue
        rises = a / n >= b / m
        one, other = (a, n), (b, m)
        found = Dependence(*((names[0], one, other) if rises else (names[1], other, one)))
        if best is None or p < best[0]:
            best = p, found
    return best[1] if best is not None and best[0] * len(tried) < LEVEL else None


def _divisions(cases: Sequence[str]) -> Iterator[tuple[tuple[str, str], list[bool]]]:
    """Yield each division as the names of its two parts and whether each case is in the first."""
    words = [[word.strip() for word in case.split(",")] for case in cases]
    numbers: dict[str, dict[int, float]] = {}
    for i, one in enumerate(words):
        for word in one:
            match = _NUMBER.match(word)
            if match and match[1]:
                numbers.setdefault(match[1], {})[i] = float(match[2])
    ordered = {name: at for name, at in numbers.items() if len(at) == len(cases)}
    for word in dict.fromkeys(w for one in words for w in one):
        match = _NUMBER.match(word)
        if match and match[1] in ordered:
            continue
        inside = [word in one for one in words]
        others = list(dict.fromkeys(w for one in words if word not in one for w in one))
        everywhere = [w for w in others if all((w in one) != (word in one) for one in words)]
        yield (word, everywhere[0] if len(everywhere) == 1 else f"not {word}"), inside
    for name, at in ordered.items():
        for cut in sorted(set(at.values()))[1:]:
            yield (f"{name} ≥ {cut:g}", f"{name} < {cut:g}"), [at[i] >= cut for i in range(len(cases))]
