"""The recurrence chunk by chunk, in matrix products; a single token is `reference.step`.

Within a chunk, every read is a product with what its tokens wrote (`scores`, decayed) plus one with the memory S that
the chunk began with. Where something is erased, what a token really writes depends on S and on the tokens before it. It
solves a unit lower triangular system, and is linear in S (the WY form of arXiv 2406.06484, section 3):

    (I + A) U = targets - a S,    A_ij = decayed a_i . w_j for j < i

with `a` what reads the part to erase and `w` what it is written with. Only S goes from chunk to chunk in a loop.

Everything is computed in float32 at least: torch has no product of bfloat16 matrices that hands back its float32 sums.
On CUDA these products are TF32 where torch's switch (`torch.backends.cuda.matmul.allow_tf32`) says so, else IEEE
float32; the library kernels, which read 16 bit and sum in float32, are the fast way there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import reference
from .decays import ChannelDecay, Decay, HeadDecay, NoDecay
from .inputs import Inputs

PIECE = 2**18  # numbers per tensor, so that what one piece computes stays in a CPU's cache


def linear_recurrence(
    inputs: Inputs, scale: float, chunk_size: int, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    batch, time, heads, d_v = inputs.values.shape
    if time == 1:
        return reference.linear_recurrence(inputs, scale, chunk_size, state, return_state)
    chunk = min(chunk_size, time)
    if inputs.log_decay is not None and inputs.log_decay.ndim == 4:
        chunk = 1 << (chunk - 1).bit_length()
    memory = None if state is None else state.to(inputs.precision).flatten(0, 1)
    piece = time
    if inputs.values.device.type == "cpu":
        piece = max(1, PIECE // (batch * heads * max(inputs.keys.shape[3], d_v) * chunk)) * chunk
    outputs = []
    for start in range(0, time, piece):
        output, memory = _piece(inputs.tokens(start, start + piece), scale, chunk, memory)
        outputs.append(output)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return output, memory.unflatten(0, (batch, heads)) if return_state and memory is not None else None


def _piece(inputs: Inputs, scale: float, chunk: int, memory: Tensor | None) -> tuple[Tensor, Tensor]:
    """Some chunks at once; memory `[batch * heads, d_k, d_v]`, before and after."""
    batch, time, heads = inputs.values.shape[:3]
    given = inputs.per_memory()
    queries, keys, values = (_chunks(x, chunk) for x in (given.queries * scale, given.keys, given.values))
    # the zeros behind the last token write nothing and decay nothing
    decay = _decay(given.log_decay, chunk)
    if given.beta is None and given.erase is None:
        bonus = None if given.bonus is None else given.bonus.repeat(batch, 1)[:, None, None]
        output, memory = _plain(queries, keys, values, decay, bonus, memory)
    else:
        output, memory = _erasing(queries, keys, values, decay, given, chunk, memory)
    # [chunks, batch * heads, group, chunk, d_v] -> [batch, time, heads * group, d_v]
    output = output.unflatten(1, (batch, heads)).permute(1, 0, 4, 2, 3, 5).flatten(1, 2)[:, :time].flatten(2, 3)
    return output, memory


def _plain(
    queries: Tensor, keys: Tensor, values: Tensor, decay: Decay, bonus: Tensor | None, memory: Tensor | None
) -> tuple[Tensor, Tensor]:
    inclusive = bonus is None
    output = decay.scores(queries, keys, inclusive) @ values
    if bonus is not None:
        output = output + (queries * bonus * keys).sum(-1, keepdim=True) * values
    writes = (decay.to_end(keys).mT @ values).squeeze(2)
    starts, memory = _scan(decay.whole(), writes, memory)
    return output + decay.from_start(queries, inclusive) @ starts.unsqueeze(2), memory


def _erasing(
    queries: Tensor, keys: Tensor, values: Tensor, decay: Decay, given: Inputs, chunk: int, memory: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`a` reads what is erased, `written` is what U is written with; both kinds of erasing differ in these only."""
    output: Tensor | None = None
    writes: Tensor | None = None
    inclusive = given.beta is not None
    written = keys
    if given.beta is not None:
        beta = _chunks(given.beta.unsqueeze(-1), chunk)
        a, targets = beta * keys, beta * values
    else:
        assert given.erase is not None
        a, targets = _chunks(given.erase[0], chunk), values
        if given.erase[1] is not None:
            written, a = _chunks(given.erase[1], chunk), -a
            targets = -(decay.scores(a, keys, inclusive) @ values)
            output = decay.scores(queries, keys, True) @ values
            writes = (decay.to_end(keys).mT @ values).squeeze(2)
    system = decay.scores(a, written, inclusive)
    u = torch.linalg.solve_triangular(system, targets, upper=False, unitriangular=True)
    w = torch.linalg.solve_triangular(system, decay.from_start(a, inclusive), upper=False, unitriangular=True)
    starts, u, memory = _erasing_scan(decay.whole(), writes, decay.to_end(written), u, w, memory)
    inner = decay.scores(queries, written, True) @ u + decay.from_start(queries, True) @ starts.unsqueeze(2)
    return inner if output is None else inner + output, memory


def _scan(whole: Tensor | None, writes: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
    """The memories before each chunk `[chunks, memories, d_k, d_v]` and after the last; `writes` of each chunk."""
    start = torch.zeros_like(writes[0]) if memory is None else memory
    if whole is None:
        memories = torch.cat([start[None], writes]).cumsum(0)
        return memories[:-1], memories[-1].clone()
    before = []
    for kept, written in zip(whole.squeeze(2).unbind(), writes.unbind(), strict=True):
        before.append(start)
        start = torch.addcmul(written, kept, start)
    return torch.stack(before), start


def _erasing_scan(
    whole: Tensor | None, writes: Tensor | None, written: Tensor, u: Tensor, w: Tensor, memory: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The memories before each chunk, what was written with `written` in each, and the memory after the last."""
    written, u, w = written.squeeze(2).mT, u.squeeze(2), w.squeeze(2)
    if memory is None:
        memory = written.new_zeros(*written.shape[1:3], u.shape[-1])
    before, solved = [], []
    for n in range(len(u)):
        before.append(memory)
        solved.append(torch.baddbmm(u[n], w[n], memory, alpha=-1))
        kept = memory if whole is None else whole[n].squeeze(1) * memory
        if writes is not None:
            kept = kept + writes[n]
        memory = torch.baddbmm(kept, written[n], solved[-1])
    return torch.stack(before), torch.stack(solved).unsqueeze(2), memory


def _decay(log_decay: Tensor | None, chunk: int) -> Decay:
    if log_decay is None:
        return NoDecay()
    if log_decay.ndim == 4:
        return ChannelDecay(_chunks(log_decay, chunk))
    return HeadDecay(_chunks(log_decay.unsqueeze(-1), chunk).squeeze(-1))


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """`[batch, time, heads, (group,) d]` -> `[chunks, batch * heads, group, chunk, d]`, zeros behind the last token."""
    if x.ndim == 4:
        x = x.unsqueeze(3)
    batch, time, heads, group, d = x.shape
    count = -(-time // chunk)
    x = F.pad(x, (0, 0) * 3 + (0, count * chunk - time))
    x = x.unflatten(1, (count, chunk)).permute(1, 0, 3, 4, 2, 5)
    return x.reshape(count, batch * heads, group, chunk, d)
