"""Run folders to tables and figures.

Nothing here imports torch: a report can be made where the training stack is not installed.
"""

from avalanche_ntk.report.boundaries import boundary_table
from avalanche_ntk.report.figures import four_panels

__all__ = ["boundary_table", "four_panels"]
