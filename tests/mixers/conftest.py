"""The fixture `oracle`: a comparison with somebody else's code, recorded for the table of oracles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mixerzoo.mixers.contract.trial import relative_error
from torch import Tensor

Oracle = Callable[..., float]


@pytest.fixture
def oracle(record_property: Callable[[str, object], None]) -> Oracle:
    """`oracle(mixer, source, actual, expected, limit)`: assert that the relative error is at most limit.

    In the 2-norm. mixer: whose row of the table it belongs to. source: package and function that gave `expected`.
    """

    def compare(mixer: str, source: str, actual: Tensor, expected: Tensor, limit: float = 1e-6) -> float:
        error = relative_error(actual, expected)
        assert error <= limit, f"{mixer} differs from {source} by {error:.3g} (limit {limit:.3g})"
        record_property("oracle", {"mixer": mixer, "source": source, "error": error, "limit": limit})
        return error

    return compare
