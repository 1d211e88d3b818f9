"""FlexAttention: its mask is made of blocks, one graph serves all lengths, and forgetting stays exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops.attention import attention, flex
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.mark.parametrize(("time", "key_time"), [(5, 5), (128, 128), (300, 300), (129, 400), (256, 257), (7, 900)])
@pytest.mark.parametrize("window", [None, 1, 40, 128, 300])
def test_the_mask_is_the_one_that_pytorch_makes_of_all_pairs(time, key_time, window):
    mask = flex.causal_mask(time, key_time, window, torch.device("cpu"))
    queries, keys = torch.arange(time)[:, None], torch.arange(key_time)
    seen = mask.mask_mod(torch.tensor(0), torch.tensor(0), queries, keys)
    position = queries + key_time - time
    assert torch.equal(seen, (keys <= position) & (keys > position - (window or key_time)))
    expected = create_block_mask(mask.mask_mod, None, None, time, key_time, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        counts = getattr(mask, f"{name}_num_blocks")
        assert torch.equal(counts, getattr(expected, f"{name}_num_blocks"))
        for count, *blocks in zip(counts[0, 0], *(getattr(m, f"{name}_indices")[0, 0] for m in (mask, expected))):
            assert torch.equal(blocks[0][:count], blocks[1][:count])
    assert mask.seq_lengths == expected.seq_lengths and mask.BLOCK_SIZE == expected.BLOCK_SIZE


def test_a_mask_never_has_an_element_for_each_pair_and_is_kept():
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            largest = max(largest, result.numel() if isinstance(result, Tensor) else 0)
            return result

    with Largest():
        mask = flex.causal_mask(2**14, 2**14, None, torch.device("cpu"))
    assert largest <= 2 * (2**14 // flex.BLOCK) ** 2
    assert flex.causal_mask(2**14, 2**14, None, torch.device("cpu")) is mask


@torch.no_grad()
def test_one_graph_serves_all_lengths(monkeypatch):
    """As on CUDA, but for the compiler behind the graph."""
    counter, compiled = CompileCounterWithBackend("eager"), flex.compiled
    monkeypatch.setattr(flex, "_kernel", lambda device, case: compiled(case, counter))
    torch.compiler.reset()
    sinks, batch, counts = torch.tensor([0.5, -1.0, 0.0, 2.0]), 7, []
    for time, key_time in ((300, 300), (400, 400), (600, 600), (1, 30), (1, 31), (1, 39), (300, 600), (400, 800)):
        generator = torch.Generator().manual_seed(time)
        q, k, v = (
            torch.randn(batch, n, h, 16, generator=generator) for n, h in ((time, 4), (key_time, 2), (key_time, 2))
        )
        log_forget = F.logsigmoid(torch.randn(batch, key_time, 4, generator=generator))
        given: dict[str, Any] = {"window": 40, "log_forget": log_forget, "sinks": sinks}
        y = attention(q, k, v, **given, backend="flex")
        expected = attention(q.double(), k.double(), v.double(), **given, backend="reference")
        assert (y - expected).norm() < 1e-6 * expected.norm()
        counts.append(counter.frame_count)
    fresh, decoded, continued = counts[:3], counts[3:6], counts[6:]
    assert len(set(fresh)) == len(set(decoded)) == len(set(continued)) == 1 and fresh < decoded < continued


def test_each_case_has_graphs_of_its_own():
    """The compiler keeps at most eight for a code object, and then runs without: all scores at once."""
    case = flex.Case(torch.float32, 4, 2, 16, 16, *[False] * 7)
    functions = [flex.compiled(c)._torchdynamo_orig_callable for c in (case, case._replace(heads=8))]
    assert functions[0].__code__ is not functions[1].__code__
    assert flex.compiled(case) is flex.compiled(case._replace())


@torch.no_grad()
def test_forgetting_is_exact_far_from_where_the_queries_start():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1500, 1, 16, generator=generator) for _ in range(3))
    log_forget = F.logsigmoid(4 * torch.randn(1, 1500, 1, generator=generator))
    y = attention(q, k, v, log_forget=log_forget, backend="flex")
    doubles = (x.double() for x in (q, k, v))
    expected = attention(*doubles, log_forget=log_forget.double(), backend="reference")
    assert (y - expected).norm() < 5e-7 * expected.norm()
