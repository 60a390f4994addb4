"""Published results as one command each: `avalanche-ntk reproduce NAME`.

A study defines runs, statistics and claims. Its result is a table of claims with a statistic, its interval over seeds
and a verdict, and figures.

    from avalanche_ntk.reproduce import reproduce if __name__ == "__main__":  # worker processes import this script
        outcome = reproduce("reactivation", "reproduced/reactivation", scale="small", data="cifar10-subset.zip")
        print(outcome.claims[0].verdict)

Names are imported on first use: `--help` and `--list` do not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avalanche_ntk.reproduce.registry import STUDIES, load_study
    from avalanche_ntk.reproduce.runner import Outcome, reproduce
    from avalanche_ntk.reproduce.study import Context, Study
    from avalanche_ntk.reproduce.verdicts import Claim, Finding, Verdict

_WHERE = {
    "STUDIES": "registry",
    "load_study": "registry",
    "Outcome": "runner",
    "reproduce": "runner",
    "Context": "study",
    "Study": "study",
    "Claim": "verdicts",
    "Finding": "verdicts",
    "Verdict": "verdicts",
}

__all__ = ["STUDIES", "Claim", "Context", "Finding", "Outcome", "Study", "Verdict", "load_study", "reproduce"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"avalanche_ntk.reproduce.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
