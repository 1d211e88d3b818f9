"""What is measured, on what, and how: suites, the runner, and the run store. Importing this does not import torch."""

from .runs import SCHEMA_VERSION, STATUSES, ResultLine, Run, RunError, Status

__all__ = ["SCHEMA_VERSION", "STATUSES", "ResultLine", "Run", "RunError", "Status"]
