"""The same problems solved by plain PyTorch code of others, in the groups of the ops: forward, at both lengths."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from mixerzoo.mixers.doctor.cases import cast
from mixerzoo.mixers.ops import recurrence, scan

from .conftest import DEVICE, DTYPE, LENGTHS, Point
from .problems import problems_of

pytestmark = [pytest.mark.parametrize("length", LENGTHS), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def inputs(op: Any, variant: str, length: int) -> dict[str, torch.Tensor]:
    problem = next(p for p in problems_of(op) if p.variant == variant)
    return cast(problem, problem.inputs(1, length, torch.Generator().manual_seed(0)), DTYPE, DEVICE)


def test_scan_by_mambapy(timed: Any, length: int) -> None:
    pscan = pytest.importorskip("mambapy.pscan").pscan
    variant = problems_of(scan.OP)[0].variant
    x = inputs(scan.OP, variant, length)
    decay, writes = x["decay"][..., None], x["writes"][..., None]
    timed(lambda: pscan(decay, writes), Point("scan", variant, "mambapy", "forward", length))


def test_gated_delta_rule_by_transformers(timed: Any, length: int) -> None:
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    plain = inspect.unwrap(module.torch_chunk_gated_delta_rule)  # the decorator would call fla's kernel
    x = inputs(recurrence.OP, "beta+decay", length)
    given = [x[name] for name in ("queries", "keys", "values", "log_decay", "beta")]
    timed(lambda: plain(*given), Point("recurrence", "beta+decay", "transformers", "forward", length))
