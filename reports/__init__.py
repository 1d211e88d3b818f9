"""Reports: a run becomes tables, charts and a page."""

from .page import write_report
from .tables import RunData, read_run

__all__ = ["RunData", "read_run", "write_report"]
