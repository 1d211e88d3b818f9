"""Proves the backends of ops on the machine where they run, and finds out which is fastest; see `docs/doctor.md`."""

from .cases import DTYPES, Case, ops_of
from .examination import TIME_LIMIT, Diagnosis, Examination
from .summary import Findings, Row, summarise

__all__ = ["DTYPES", "TIME_LIMIT", "Case", "Diagnosis", "Examination", "Findings", "Row", "ops_of", "summarise"]
