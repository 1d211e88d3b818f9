"""Attention through PyTorch's `scaled_dot_product_attention`, which picks the kernel for the device.

Its kernels know neither sinks nor forgetting, so both become features: a sink is one more key, all zeros but for a last
feature that only it has; a sum of logits that depends on the query plus one that depends on the key is a product.

On CUDA, what the fused kernels refuse goes to one that writes all scores down (PyTorch's `sdp_utils.cpp`, 2.6 to 2.13).
So heads are repeated where FlashAttention cannot take grouped ones, and sizes are filled up to multiples of 8. Wherever
lengths change from call to call, cuDNN is left out, which makes a plan for every length.
No GPU has run this yet: it was read from PyTorch's source, and tested on tensors that pretend to be on one.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.amp import autocast
from torch.backends import cuda
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..dispatch import record_kernel, recording, wants_gradient
from ..libraries import call_library

MASK_ELEMENTS = 2**24  # queries that continue a cache go in blocks whose mask has at most this many elements
MOST_ROWS, FEWEST_ROWS = 512, 16  # and this many queries
SMALLEST_BLOCK = 32  # for windows: smaller blocks would waste more on overhead than they save
ALIGNMENT = 8  # of head sizes on CUDA: 16 bytes of a 16-bit number, which is enough for float32, too
FLASH_DTYPES, FLASH_FEATURES = (torch.float16, torch.bfloat16), 256  # what FlashAttention takes in PyTorch
KERNELS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "overrideable"}  # by the numbers of SDPBackend


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None,
    sinks: Tensor | None,
    log_forget: Tensor | None,
    scale: float,
) -> Tensor:
    time, d_value = queries.shape[1], values.shape[-1]
    if time == 1:
        bias = None if log_forget is None else row_of_bias(log_forget, keys.shape[2])
        return one(queries, keys, values, bias, sinks, scale)
    if log_forget is not None:
        return _forgetting(queries, keys, values, window, sinks, log_forget, scale)
    queries, keys, values = _of_equal_width(queries, keys, values)
    return _many(queries, keys, values, window, sinks, scale)[..., :d_value]


def _many(
    queries: Tensor, keys: Tensor, values: Tensor, window: int | None, sinks: Tensor | None, scale: float
) -> Tensor:
    time, key_time = queries.shape[1], keys.shape[1]
    if window is None and time == key_time:
        return _causal(queries, keys, values, sinks, scale)
    if window is None and _returns_normaliser(queries, keys, values):
        return _joined(queries, keys, values, sinks, scale)
    if window is None or time <= _block_size(window):
        return _continued(queries, keys, values, window, sinks, scale)
    return _banded(queries, keys, values, window, sinks, scale)


def one(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, sinks: Tensor | None, scale: float
) -> Tensor:
    """Decoding, which copies no cache: wider values than keys go piece by piece. bias: see `_masked`."""
    d_head = keys.shape[-1]
    if values.shape[-1] <= d_head:
        padded = F.pad(values, (0, d_head - values.shape[-1])) if values.shape[-1] < d_head else values
        return _masked(queries, keys, padded, bias, sinks, scale)[..., : values.shape[-1]]
    pieces = [one(queries, keys, piece, bias, sinks, scale) for piece in values.split(d_head, dim=-1)]
    return torch.cat(pieces, dim=-1)


def row_of_bias(log_forget: Tensor, kv_heads: int) -> Tensor:
    """What forgetting adds to the logits of the last token, `[batch, kv_heads, groups, key_time]`."""
    after = log_forget[:, 1:].flip(1).cumsum(1).flip(1)
    return F.pad(after, (0, 0, 0, 1)).transpose(1, 2).unflatten(1, (kv_heads, -1))


def _forgetting(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None,
    sinks: Tensor | None,
    log_forget: Tensor,
    scale: float,
) -> Tensor:
    """The sums of log_forget up to the query less those up to the key, as the first features of both.

    Sums grow with the text and differences decide, so each sum is several numbers: rounded ones and the rest. The
    rounded ones cancel where keys are near enough to matter. In float32, but for bfloat16 on CUDA without gradients:
    the gradient of a sum would be rounded to 8 bits before it is summed over all later tokens.
    """
    dtype, time, d_value = queries.dtype, queries.shape[1], values.shape[-1]
    low = dtype == torch.bfloat16 and on_cuda(queries.device) and not wants_gradient(queries, keys, values, log_forget)
    precision = dtype if low else torch.promote_types(dtype, torch.float32)
    groups = queries.shape[2] // keys.shape[2]
    with autocast(queries.device.type, enabled=False):
        queries, keys, values = (x.to(precision) for x in (queries, keys, values))
        keys, values = (x.repeat_interleave(groups, dim=2) if groups > 1 else x for x in (keys, values))
        total = log_forget.double().cumsum(1) / scale
        parts = _parts(total - total[:, -time].detach().unsqueeze(1), precision, 3 if low else 2)
        one = torch.ones_like(parts[-1])
        of_queries = torch.stack([feature for part in parts for feature in (part, one)], dim=-1)[:, -time:]
        of_keys = torch.stack([feature for part in parts for feature in (one, -part)], dim=-1)
        queries, keys = torch.cat([of_queries, queries], dim=-1), torch.cat([of_keys, keys], dim=-1)
        y = _many(*_of_equal_width(queries, keys, values), window, sinks, scale)
    return y[..., :d_value].to(dtype)


def _parts(total: Tensor, dtype: torch.dtype, count: int) -> list[Tensor]:
    """So many numbers of `dtype` that sum to each of `total`: rounded ones, and the rest, which has the gradient."""
    parts = []
    for _ in range(count - 1):
        parts.append(total.detach().to(dtype))
        total = total - parts[-1]
    return [*parts, total.to(dtype)]


def _of_equal_width(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Padded with zeros: fast kernels want keys and values of one size."""
    width = _aligned(max(keys.shape[-1], values.shape[-1]), keys.device)
    return _widened(queries, width), _widened(keys, width), _widened(values, width)


def _aligned(width: int, device: torch.device) -> int:
    return -(-width // ALIGNMENT) * ALIGNMENT if on_cuda(device) else width


def _widened(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def _causal(queries: Tensor, keys: Tensor, values: Tensor, sinks: Tensor | None, scale: float) -> Tensor:
    width = values.shape[-1]
    queries, keys, values = (x.transpose(1, 2) for x in (queries, keys, values))
    if sinks is not None:
        queries, keys, values = _with_sink(queries, keys, values, sinks[:, None].expand(-1, queries.shape[2]), scale)
        queries = F.pad(queries, (0, 0, 1, 0))  # a query for the sink's place, so that the diagonal fits
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1 and needs_repeated_heads(queries.device, queries.dtype, queries.shape[-1]):
        keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
    y = _attend(queries, keys, values, None, scale, causal=True)
    return (y if sinks is None else y[:, :, 1:, :width]).transpose(1, 2)


def needs_repeated_heads(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether queries that share keys would go to the kernel that writes all scores down.

    Of the kernels for CUDA, FlashAttention alone takes grouped heads in all versions; it wants 16-bit numbers, at most
    256 features and compute capability 8.0. Elsewhere they cost nothing.
    """
    return on_cuda(device) and (dtype not in FLASH_DTYPES or width > FLASH_FEATURES or not _has_flash(device))


def on_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


def _has_flash(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_properties(device).major >= 8


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, causal: bool = False
) -> Tensor:
    """PyTorch's attention over `[batch, heads, time, d_head]`: every call of it is here."""
    how: dict[str, Any] = {
        "attn_mask": mask,
        "is_causal": causal,
        "scale": scale,
        "enable_gqa": queries.shape[1] != keys.shape[1],
    }
    # without the causal flag there is a cache or a mask: lengths change from call to call
    with _AS_IT_IS if causal or not on_cuda(queries.device) else without_cudnn():
        if recording() and queries.device.type in ("cpu", "cuda"):  # others may have no choice to tell
            record_kernel("attention", "sdpa", KERNELS[torch._fused_sdp_choice(queries, keys, values, **how)])
        return call_library(F.scaled_dot_product_attention, queries, keys, values, **how)


def without_cudnn() -> contextlib.AbstractContextManager[Any]:
    """PyTorch's choice of kernels less cuDNN, if that leaves any."""
    if torch.compiler.is_compiling():
        return sdpa_kernel(_compiled_kernels())
    others = cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.math_sdp_enabled()
    return _CUDNN_OFF if others and cuda.cudnn_sdp_enabled() else _AS_IT_IS


def _compiled_kernels() -> list[SDPBackend]:
    """The kernels that compiled code may take: those enabled when it is compiled, less cuDNN."""
    found = [
        (SDPBackend.FLASH_ATTENTION, cuda.flash_sdp_enabled()),
        (SDPBackend.EFFICIENT_ATTENTION, cuda.mem_efficient_sdp_enabled()),
        (SDPBackend.MATH, cuda.math_sdp_enabled()),
    ]
    return [kernel for kernel, enabled in found if enabled] or [SDPBackend.CUDNN_ATTENTION]


# as `torch.compiler.assume_constant_result` would mark it, which imports the whole compiler
_compiled_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _CudnnOff:
    """What `sdpa_kernel` does in 9 microseconds, in less than one: too much for every layer of a decoded token."""

    def __enter__(self) -> None:
        cuda.enable_cudnn_sdp(False)

    def __exit__(self, *error: object) -> None:
        cuda.enable_cudnn_sdp(True)


_CUDNN_OFF, _AS_IT_IS = _CudnnOff(), contextlib.nullcontext()


def _masked(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, sinks: Tensor | None, scale: float
) -> Tensor:
    """The query heads of a group go in as rows: the keys are neither repeated nor copied, and any kernel takes them.

    mask: None, bool `[time, key_time]`, or for one query what to add, `[batch, kv_heads, groups, key_time]`.
    """
    kv_heads = keys.shape[2]
    groups = queries.shape[2] // kv_heads
    rows = _as_rows(queries, kv_heads)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if mask is not None:
        mask = mask.repeat(groups, 1) if mask.dtype == torch.bool else mask.to(rows.dtype)
    if sinks is None:
        y = _attend(rows, keys, values, mask, scale)
    else:
        y = _masked_with_sink(rows, keys, values, mask, _as_rows(_repeated(sinks, queries), kv_heads)[..., 0], scale)
    return y.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _masked_with_sink(
    rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, sinks: Tensor, scale: float
) -> Tensor:
    if mask is None and _returns_normaliser(rows, keys, values, sinks):  # the cache is not copied
        y, log_sum = _with_normaliser(rows, keys, values, scale)
        return y * (log_sum - sinks).sigmoid().unsqueeze(-1).to(y.dtype)
    width = values.shape[-1]
    rows, keys, values = _with_sink(rows, keys, values, sinks, scale)
    if mask is not None:
        mask = F.pad(mask, (1, 0), value=mask.dtype == torch.bool)
    return _attend(rows, keys, values, mask, scale)[..., :width]


def _with_sink(
    queries: Tensor, keys: Tensor, values: Tensor, sinks: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A key before all others whose logits are `sinks [batch or none, heads, time]`; `[batch, heads, time, d_head]`."""
    d_head = keys.shape[-1]
    width = _aligned(d_head + 1, keys.device)
    logits = (sinks / scale).to(queries.dtype).expand(queries.shape[:3]).unsqueeze(-1)
    queries = _widened(torch.cat([queries, logits], dim=-1), width)
    sink = F.pad(keys.new_ones(1, 1, 1, 1), (d_head, width - d_head - 1)).expand(*keys.shape[:2], 1, -1)
    keys = torch.cat([sink, _widened(keys, width)], dim=2)
    return queries, keys, F.pad(values, (0, width - d_head, 1, 0))


def _repeated(sinks: Tensor, queries: Tensor) -> Tensor:
    """`[batch, time, heads, 1]`"""
    return sinks[:, None].expand(*queries.shape[:3], 1)


def _as_rows(queries: Tensor, kv_heads: int) -> Tensor:
    """`[batch, time, heads, d_head]` as `[batch, kv_heads, groups * time, d_head]`."""
    return queries.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _continued(
    queries: Tensor, keys: Tensor, values: Tensor, window: int | None, sinks: Tensor | None, scale: float
) -> Tensor:
    """Queries after a cache, all keys in sight of a block of them at once."""
    blocks, start = [], keys.shape[1] - queries.shape[1]
    rows = min(MOST_ROWS, max(FEWEST_ROWS, MASK_ELEMENTS // keys.shape[1]))
    for block in queries.split(rows, dim=1):
        end = start + block.shape[1]
        mask = _visible(block.shape[1], end, window, keys.device)
        blocks.append(_masked(block, keys[:, :end], values[:, :end], mask, sinks, scale))
        start = end
    return torch.cat(blocks, dim=1)


def _joined(queries: Tensor, keys: Tensor, values: Tensor, sinks: Tensor | None, scale: float) -> Tensor:
    """Queries after a cache without any mask: over the cache, causally over their own keys, and then both together.

    Two softmaxes over parts of the keys make one over all: weighted by their normalisers, whose logarithms PyTorch's
    kernel for the CPU returns. It has no gradient with respect to those.
    """
    past, (kv_heads, groups) = keys.shape[1] - queries.shape[1], (keys.shape[2], queries.shape[2] // keys.shape[2])
    old_keys, old_values = (x[:, :past].transpose(1, 2) for x in (keys, values))
    cached, cached_log = _with_normaliser(_as_rows(queries, kv_heads), old_keys, old_values, scale)
    own_keys, own_values = (x[:, past:].repeat_interleave(groups, dim=2).transpose(1, 2) for x in (keys, values))
    own, own_log = _with_normaliser(queries.transpose(1, 2), own_keys, own_values, scale, causal=True)
    cached, cached_log = (x.unflatten(2, (groups, -1)).flatten(1, 2) for x in (cached, cached_log))
    share = (cached_log - own_log).sigmoid().unsqueeze(-1)
    y = torch.lerp(own.to(share.dtype), cached.to(share.dtype), share)
    if sinks is not None:
        log_sum = torch.logaddexp(cached_log, own_log)
        y = y * (log_sum - sinks[:, None]).sigmoid().unsqueeze(-1)
    return y.to(queries.dtype).transpose(1, 2)


def _with_normaliser(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """PyTorch's kernel for the CPU: what is read, and the logarithm of the normaliser `[batch, heads, time]`."""
    if recording():
        record_kernel("attention", "sdpa", "flash")
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    y, log_sum = attend(queries, keys, values, is_causal=causal, scale=scale)
    return y, log_sum


def _returns_normaliser(*tensors: Tensor) -> bool:
    """Whether the kernel that returns the logarithm of the normaliser, without its gradient, can be used."""
    return tensors[0].device.type == "cpu" and not wants_gradient(*tensors)


def _banded(queries: Tensor, keys: Tensor, values: Tensor, window: int, sinks: Tensor | None, scale: float) -> Tensor:
    """Linear in time: each block of `size >= window` queries sees its own block of keys and the one before."""
    size, (batch, time) = _block_size(window), queries.shape[:2]
    past = keys.shape[1] - time  # at most window - 1, so that the first block has less before it than the others
    first_keys, first_values = keys[:, : past + size], values[:, : past + size]
    first = _continued(queries[:, :size], first_keys, first_values, window, sinks, scale)

    n_blocks = -(-(time - size) // size)
    padding = (0, 0, 0, 0, 0, n_blocks * size - (time - size))
    blocks = F.pad(queries[:, size:], padding).unflatten(1, (n_blocks, size)).flatten(0, 1)
    key_blocks, value_blocks = (F.pad(x[:, past:], padding).unflatten(1, (n_blocks + 1, size)) for x in (keys, values))
    key_pairs, value_pairs = (torch.cat([x[:, :-1], x[:, 1:]], dim=2).flatten(0, 1) for x in (key_blocks, value_blocks))
    visible = _visible(size, 2 * size, window, keys.device)
    rest = _masked(blocks, key_pairs, value_pairs, visible, sinks, scale)
    return torch.cat([first, rest.unflatten(0, (batch, n_blocks)).flatten(1, 2)[:, : time - size]], dim=1)


def _block_size(window: int) -> int:
    return max(window, SMALLEST_BLOCK)


def _visible(time: int, key_time: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys the last `time` of `key_time` positions see, bool `[time, key_time]`."""
    visible = torch.ones(time, key_time, dtype=torch.bool, device=device).tril(key_time - time)
    return visible if window is None else visible.triu(key_time - time - window + 1)
