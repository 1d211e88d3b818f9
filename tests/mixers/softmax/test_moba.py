"""MoBA against flash-linear-attention's, with dense attention in the place of the kernels that it calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from mixerzoo.mixers.ops.block_attention import block_attention, nearest_blocks
from torch import Tensor


def dense(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool, **_: Any
) -> tuple[Tensor, Tensor, None, None]:
    """What flash-attn's variable-length forward returns: outputs `[time, heads, d]`, log-sum-exp `[heads, time]`."""
    outputs, logs = [], []
    for i in range(len(cu_seqlens_q) - 1):
        rows, columns = (slice(int(c[i]), int(c[i + 1])) for c in (cu_seqlens_q, cu_seqlens_k))
        scores = torch.einsum("thd,shd->hts", q[rows], k[columns]) * q.shape[-1] ** -0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), float("-inf"))
        outputs.append(torch.einsum("hts,shd->thd", scores.softmax(-1), v[columns]))
        logs.append(scores.logsumexp(-1))
    return torch.cat(outputs), torch.cat(logs, dim=1), None, None


@pytest.mark.parametrize(("time", "top_k"), [(64, 3), (53, 2), (30, 4)])
def test_parallel_moba_of_fla(oracle: Any, monkeypatch: pytest.MonkeyPatch, time: int, top_k: int) -> None:
    from fla.ops.moba import parallel as theirs

    monkeypatch.setattr(theirs, "_flash_attn_varlen_forward", dense)
    monkeypatch.setattr(theirs, "flash_attn_varlen_func", dense)  # only to be there
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, time, 2, 8) for _ in range(3))
    expected = theirs.parallel_moba(q, k, v, torch.tensor([0, time]), time, 8, top_k)
    means = k[:, : time // 8 * 8].unflatten(1, (-1, 8)).mean(2)
    blocks = nearest_blocks(q, means, position=0, block_size=8, top_k=top_k)
    y = block_attention(q, k, v, blocks, block_size=8)
    oracle("moba", "fla-core parallel_moba on dense attention", y, expected)


def test_with_enough_blocks_it_is_softmax_attention() -> None:
    torch.manual_seed(0)
    moba = create_mixer("moba", 32, heads=2, block_size=8, top_k=8)
    full = create_mixer("softmax_attention", 32, heads=2)
    full.load_state_dict(moba.state_dict())
    x = torch.randn(2, 60, 32)
    torch.testing.assert_close(moba(x)[0], full(x)[0], atol=1e-6, rtol=1e-5)


def test_a_block_that_is_not_chosen_is_not_read() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 32, 1, 8) for _ in range(3))
    blocks = nearest_blocks(q, k.unflatten(1, (-1, 8)).mean(2), position=0, block_size=8, top_k=2)
    y = block_attention(q, k, v, blocks, block_size=8)
    other = min({0, 1, 2} - {*blocks[0, 31, 0].tolist()})  # of those that the last token does not read
    changed = v.clone()
    changed[:, other * 8 : other * 8 + 8] += 1
    assert torch.equal(block_attention(q, k, changed, blocks, block_size=8)[:, 31], y[:, 31])
