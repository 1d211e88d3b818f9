"""The recurrence, forward, batch 1, 4,096 tokens, 8 heads of 64: every variant as a ratio in one table, beside causal
attention and transformers' chunked gated delta rule in plain torch."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.recurrence import linear_recurrence
from torch.nn import functional as F

TIME, HEADS, WIDTH = 4096, 8, 64
SIZE = (1, TIME, HEADS, WIDTH)
DECAYS = ("none", "head", "channel")
WRITES = ("plain", "beta", "erase", "erase keys", "bonus")

pytestmark = [pytest.mark.benchmark(group=f"recurrence, {TIME} tokens"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def given(normal: Any) -> dict[str, torch.Tensor]:
    """Queries and keys of length 1, values, and everything that a variant may take."""
    return {
        "queries": F.normalize(normal(*SIZE), dim=-1),
        "keys": F.normalize(normal(*SIZE), dim=-1),
        "values": normal(*SIZE),
        "head": -0.1 * normal(*SIZE[:3]).exp(),
        "channel": -0.1 * normal(*SIZE).exp(),
        "beta": normal(*SIZE[:3]).sigmoid(),
        "a": F.normalize(normal(*SIZE), dim=-1),
        "bonus": normal(HEADS, WIDTH),
    }


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("decay", DECAYS)
def test_variant(given: dict[str, torch.Tensor], timed: Any, decay: str, write: str) -> None:
    options: dict[str, Any] = {} if decay == "none" else {"log_decay": given[decay]}
    if write in ("beta", "bonus"):
        options[write] = given[write]
    if write.startswith("erase"):
        options["erase"] = (given["a"], -0.5 * given["a"] if write == "erase" else None)
    sequences = [given[name] for name in ("queries", "keys", "values")]
    with torch.no_grad():
        timed(lambda: linear_recurrence(*sequences, **options))


def test_causal_attention(given: dict[str, torch.Tensor], timed: Any) -> None:
    q, k, v = (given[name].transpose(1, 2) for name in ("queries", "keys", "values"))
    with torch.no_grad():
        timed(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_transformers_gated_delta_rule(given: dict[str, torch.Tensor], timed: Any) -> None:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    plain = inspect.unwrap(torch_chunk_gated_delta_rule)  # the decorator would call fla's kernel
    sequences = [given[name] for name in ("queries", "keys", "values", "head", "beta")]
    with torch.no_grad():
        timed(lambda: plain(*sequences))
