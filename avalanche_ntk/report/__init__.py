"""Run folders to tables, figures and one page.

Nothing here imports torch: reports do not need the training stack.
"""

from avalanche_ntk.report.boundaries import boundary_table
from avalanche_ntk.report.figures import four_panels
from avalanche_ntk.report.inspection import Inspection, inspect_run
from avalanche_ntk.report.loading import load
from avalanche_ntk.report.seed_figures import seed_curves
from avalanche_ntk.report.seeds import SeedTable, seed_table
from avalanche_ntk.report.writing import Written, write_report

__all__ = [
    "Inspection",
    "SeedTable",
    "Written",
    "boundary_table",
    "four_panels",
    "inspect_run",
    "load",
    "seed_curves",
    "seed_table",
    "write_report",
]
