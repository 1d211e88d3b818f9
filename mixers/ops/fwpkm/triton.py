"""FwPKM's compact backend with kernels of its own for a GPU: `compact.run`, with other primitives.

Every kernel writes each element of its result from one program, in a fixed order: no atomics, the same bits every time.
Bytes a kernel moves between the chip and its memory, for `N` tokens of `J = heads * top_k` accesses to rows of
`4 * d_v` bytes, `R` of them distinct:

- `_address_kernel`, one program per tile of tokens and head, reads the queries once, `4 * N * heads * d_k`, and writes
  `36 * N * J` of sub-scores, sums and places. Every tile reads all sub-keys, `4 * n_subkeys * d_k`, from the L2 cache.
  The scores of a tile against one codebook live in registers, and the best are taken out one after the other; no
  matrix of scores reaches memory. Sums are of float32, products as precise as torch's own of float32 matrices: TF32
  only where its user allowed that. All else is float32 throughout; reading few rows has no use for tensor cores.
- `_recall_kernel`, one program per token, reads `J` rows of the table and the target, and writes what was retrieved
  and the error: `N * (J * (4 * d_v + 12) + 12 * d_v)`. `_read_kernel` and `_dot_kernel` read the same rows.
- `_add_kernel`, one program per written row, reads the errors once per access, after the first time from the L2 cache,
  and reads and writes each row once: `N * (J * 12 + 4 * d_v) + R * (8 * d_v + 16)`.
- `_recall_backward_kernel`, one program per token, reads `J` rows of the table's gradient once for the gradients of
  what was read and of the coefficients: `N * (J * (4 * d_v + 16) + 24 * d_v)`. Then `_add_kernel` undoes the update
  and adds to the gradient of the same rows, and `_dot_kernel` has the gradient of the weights.

So a chunk takes two launches forwards and three backwards, besides its key step and what clipping or decay add. The
backward of addressing and the step of the keys use `_read_kernel`, `_dot_kernel` and `_spread_kernel` on codebooks in
place of the table.

No GPU has run this yet; the kernels compile for one, and tile sizes were chosen from registers and shared memory. To
try on an H200: the two halves in programs of their own; more warps and fewer tokens a tile (512 sub-keys spill 256
bytes a thread); rows in pieces of 256 or 1,024 features; rows with thousands of accesses, which one program adds up
alone, in two stages.

On a CPU the kernels run in Triton's interpreter, far too slow for anything but tests, and only if the environment
variable TRITON_INTERPRET is 1 before triton is first imported. There and on a GPU they take float32 or float64.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...tf32 import tf32_allowed
from ..product_keys import Score
from .compact import run as run_with
from .primitives import Accesses, Kernels, Rows, Window


def _launch(kernel: Any, grid: tuple[int, int], first: Tensor, /, *rest: Any, **constants: Any) -> None:
    """On the device of its tensors: Triton alone would take the current one."""
    with torch.cuda.device_of(first):
        kernel[grid](first, *rest, **constants)


# ---------------------------------------------------------------------------------------------------------------------
# Addressing


@triton.jit
def _score_tile(
    halves, keys, token, n, n_subkeys, d, stride_token, stride_subkey,
    IDW: tl.constexpr, PRECISION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores `[BLOCK_T, BLOCK_S]` of a tile of tokens against a codebook; IDW: minus the squared distances."""
    subkey = tl.arange(0, BLOCK_S)
    product = tl.zeros([BLOCK_T, BLOCK_S], halves.dtype.element_ty)
    token_norm = tl.zeros([BLOCK_T], halves.dtype.element_ty)
    key_norm = tl.zeros([BLOCK_S], halves.dtype.element_ty)
    for start in range(0, d, BLOCK_D):
        feature = start + tl.arange(0, BLOCK_D)
        query_mask = (token[:, None] < n) & (feature[None, :] < d)
        query = tl.load(halves + token[:, None] * stride_token + feature[None, :], mask=query_mask, other=0.0)
        key_mask = (subkey[None, :] < n_subkeys) & (feature[:, None] < d)
        key = tl.load(keys + subkey[None, :] * stride_subkey + feature[:, None], mask=key_mask, other=0.0)
        product = tl.dot(query, key, product, input_precision=PRECISION, out_dtype=halves.dtype.element_ty)
        if IDW:
            token_norm += tl.sum(query * query, axis=1)
            key_norm += tl.sum(key * key, axis=0)
    if IDW:
        product = 2 * product - token_norm[:, None] - key_norm[None, :]
    return tl.where(subkey[None, :] < n_subkeys, product, float("-inf"))


@triton.jit
def _take_best(scores, last, TOP_K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr):
    """The largest of each row of `scores [BLOCK_T, BLOCK_S]` and their places, `[BLOCK_T, BLOCK_K]`, best first."""
    column = tl.arange(0, BLOCK_S)[None, :]
    rank = tl.arange(0, BLOCK_K)[None, :]
    values = tl.full([BLOCK_T, BLOCK_K], float("-inf"), scores.dtype)
    places = tl.zeros([BLOCK_T, BLOCK_K], tl.int32)
    for j in range(TOP_K):
        value = tl.max(scores, axis=1)[:, None]
        place = tl.min(tl.where(scores == value, column, BLOCK_S), axis=1)[:, None]
        place = tl.minimum(place, last)  # not a number equals nothing; no place may be out of range
        values = tl.where(rank == j, value, values)
        places = tl.where(rank == j, place, places)
        scores = tl.where(column == place, float("-inf"), scores)
    return values, places


@triton.jit
def _best_subkeys(
    halves, keys, best, index, token, n, n_subkeys, d, stride_token, stride_subkey, TOP_K: tl.constexpr,
    IDW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Score one half, store its best sub-scores and their places, and return the sub-scores."""
    scores = _score_tile(
        halves, keys, token, n, n_subkeys, d, stride_token, stride_subkey, IDW, PRECISION, BLOCK_T, BLOCK_S, BLOCK_D
    )
    values, places = _take_best(scores, n_subkeys - 1, TOP_K, BLOCK_T, BLOCK_S, BLOCK_K)
    rank = tl.arange(0, BLOCK_K)[None, :]
    if IDW:  # the logarithm is monotone: only of the best
        values = tl.where(rank < TOP_K, -tl.log(0.001 + tl.maximum(-values, 0.0)), float("-inf"))
    mask = (token[:, None] < n) & (rank < TOP_K)
    tl.store(best + token[:, None] * TOP_K + rank, values, mask=mask)
    tl.store(index + token[:, None] * TOP_K + rank, places.to(tl.int64), mask=mask)
    return values


@triton.jit(do_not_specialize=["n"])
def _address_kernel(
    halves, keys, best, index, total, pairs, n, n_subkeys, d, heads,
    half_memory, half_head, half_half, half_token, key_memory, key_head, key_half, key_subkey,
    TOP_K: tl.constexpr, IDW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    codebook = tl.program_id(1).to(tl.int64)
    memory = codebook // heads
    head = codebook % heads
    halves += memory * half_memory + head * half_head
    keys += memory * key_memory + head * key_head
    best += codebook * 2 * n * TOP_K
    index += codebook * 2 * n * TOP_K
    first = _best_subkeys(
        halves, keys, best, index,
        token, n, n_subkeys, d, half_token, key_subkey, TOP_K, IDW, PRECISION, BLOCK_T, BLOCK_S, BLOCK_D, BLOCK_K,
    )  # fmt: skip
    second = _best_subkeys(
        halves + half_half, keys + key_half, best + n * TOP_K, index + n * TOP_K,
        token, n, n_subkeys, d, half_token, key_subkey, TOP_K, IDW, PRECISION, BLOCK_T, BLOCK_S, BLOCK_D, BLOCK_K,
    )  # fmt: skip
    sums = tl.reshape(first[:, :, None] + second[:, None, :], [BLOCK_T, BLOCK_K * BLOCK_K])
    values, places = _take_best(sums, BLOCK_K * TOP_K - 1, TOP_K, BLOCK_T, BLOCK_K * BLOCK_K, BLOCK_K)
    places = places // BLOCK_K * TOP_K + tl.minimum(places % BLOCK_K, TOP_K - 1)
    rank = tl.arange(0, BLOCK_K)[None, :]
    place = codebook * n * TOP_K + token[:, None] * TOP_K + rank
    mask = (token[:, None] < n) & (rank < TOP_K)
    tl.store(total + place, values, mask=mask)
    tl.store(pairs + place, places.to(tl.int64), mask=mask)


def address_constants(n_subkeys: int, top_k: int, itemsize: int, shared_memory: int) -> dict[str, int]:
    """Tile sizes and launch options of `_address_kernel`: about 32 scores a thread, and of the features as many at a
    time, if possible loaded ahead, as fit into the bytes of shared memory that a program may have.

    Raises `RuntimeError` if nothing fits.
    """
    subkeys, best = max(16, triton.next_power_of_2(n_subkeys)), max(2, triton.next_power_of_2(top_k))
    width = max(subkeys, best * best)
    tokens = min(64, max(16, 8192 // width))
    warps = min(16, max(4, tokens * width // 1024))
    for features, stages in ((16, 3), (16, 1), (8, 1)):
        ahead = stages > 1 and itemsize > 4  # float64 is for checks only
        if not ahead and address_shared_bytes(tokens, subkeys, features, stages, itemsize) <= shared_memory:
            sizes = {"BLOCK_T": tokens, "BLOCK_S": subkeys, "BLOCK_D": features, "BLOCK_K": best}
            return sizes | {"num_warps": warps, "num_stages": stages}
    needed = address_shared_bytes(tokens, subkeys, 8, 1, itemsize)
    raise RuntimeError(
        f"the triton backend of fwpkm needs {needed} bytes of shared memory for {n_subkeys} sub-keys, and this device "
        f"has {shared_memory}; use backend='compact'"
    )


def address_shared_bytes(tokens: int, subkeys: int, features: int, stages: int, itemsize: int) -> int:
    """What a program takes at most: tiles of queries and sub-keys, one for each stage ahead, and 1 KB to reduce in."""
    return max(1, stages - 1) * (tokens + subkeys) * features * itemsize + 1024


@functools.lru_cache(maxsize=64)
def _shared_memory(device: torch.device) -> int:
    """The bytes that one program may have: 99 KB on consumer cards, 163 on an A100, 227 on an H100."""
    if device.type != "cuda":
        return 227 * 1024
    # torch tells it from 2.7 on, and not for AMD
    return triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"]


def product_precision(dtype: torch.dtype) -> str:
    """As torch multiplies matrices of this dtype on a GPU: `tf32` if its user allowed that for float32, else `ieee`."""
    exact = dtype != torch.float32 or torch.version.hip or not tf32_allowed()
    return "ieee" if exact else "tf32"


def _address(halves: Tensor, keys: Tensor, top_k: int, score: Score) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    halves, keys = (t if t.stride(-1) == 1 else t.contiguous() for t in (halves, keys))
    memories, heads, _, n, d = halves.shape
    best = halves.new_empty((memories, heads, 2, n, top_k))
    total = halves.new_empty((memories, heads, n, top_k))
    index, pairs = torch.empty_like(best, dtype=torch.long), torch.empty_like(total, dtype=torch.long)
    constants = address_constants(keys.shape[3], top_k, halves.element_size(), _shared_memory(halves.device))
    grid = (triton.cdiv(n, constants["BLOCK_T"]), memories * heads)
    if n:
        _launch(
            _address_kernel,
            grid,
            *(halves, keys, best, index, total, pairs, n, keys.shape[3], d, heads),
            *(*halves.stride()[:4], *keys.stride()[:4]),
            TOP_K=top_k,
            IDW=score == "idw",
            PRECISION=product_precision(halves.dtype),
            **constants,
        )
    return best, index, total, pairs


# ---------------------------------------------------------------------------------------------------------------------
# Rows


@triton.jit(do_not_specialize=["n"])
def _read_kernel(
    table, ids, weights, out, n, slots, d, BLOCK_T: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    feature = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_T, BLOCK_D], out.dtype.element_ty)
    for start in range(0, slots, BLOCK_J):
        slot = start + tl.arange(0, BLOCK_J)
        place = token[:, None] * slots + slot[None, :]
        used = (token[:, None] < n) & (slot[None, :] < slots)
        row = tl.load(ids + place, mask=used, other=0)
        weight = tl.load(weights + place, mask=used, other=0.0)
        mask = used[:, :, None] & (feature < d)[None, None, :]
        values = tl.load(table + row[:, :, None] * d + feature[None, None, :], mask=mask, other=0.0)
        total += tl.sum(weight[:, :, None] * values, axis=1)
    mask = (token[:, None] < n) & (feature[None, :] < d)
    tl.store(out + token[:, None] * d + feature[None, :], total, mask=mask)


@triton.jit(do_not_specialize=["n"])
def _dot_kernel(table, ids, x, out, n, slots, d, BLOCK_T: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr):
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    slot = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    place = token[:, None] * slots + slot[None, :]
    used = (token[:, None] < n) & (slot[None, :] < slots)
    row = tl.load(ids + place, mask=used, other=0)
    total = tl.zeros([BLOCK_T, BLOCK_J], out.dtype.element_ty)
    for start in range(0, d, BLOCK_D):
        feature = start + tl.arange(0, BLOCK_D)
        x_mask = (token[:, None] < n) & (feature[None, :] < d)
        mine = tl.load(x + token[:, None] * d + feature[None, :], mask=x_mask, other=0.0)
        mask = used[:, :, None] & (feature < d)[None, None, :]
        values = tl.load(table + row[:, :, None] * d + feature[None, None, :], mask=mask, other=0.0)
        total += tl.sum(values * mine[:, None, :], axis=2)
    tl.store(out + place, total, mask=used)


@triton.jit
def _sums(
    x, weights, token, begin, end, feature, d, BLOCK_R: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The sums `[BLOCK_R, BLOCK_D]` of `weight * x[token]` over the sorted accesses `begin:end` of each row."""
    total = tl.zeros([BLOCK_R, BLOCK_D], x.dtype.element_ty)
    for start in range(0, tl.max(end - begin, axis=0), BLOCK_A):
        access = begin[:, None] + start + tl.arange(0, BLOCK_A)[None, :]
        used = access < end[:, None]
        source = tl.load(token + access, mask=used, other=0)
        weight = tl.load(weights + access, mask=used, other=0.0)
        mask = used[:, :, None] & (feature < d)[None, None, :]
        values = tl.load(x + source[:, :, None] * d + feature[None, None, :], mask=mask, other=0.0)
        total += tl.sum(weight[:, :, None] * values, axis=1)
    return total


@triton.jit(do_not_specialize=["n_rows", "n_accesses"])
def _spread_kernel(
    x, weights, token, offsets, out, n_rows, n_accesses, d,
    BLOCK_R: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    feature = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.load(offsets + place, mask=place < n_rows, other=n_accesses)
    end = tl.load(offsets + place + 1, mask=place + 1 < n_rows, other=n_accesses)
    total = _sums(x, weights, token, begin, end, feature, d, BLOCK_R, BLOCK_A, BLOCK_D)
    tl.store(
        out + place[:, None] * d + feature[None, :], total, mask=(place[:, None] < n_rows) & (feature[None, :] < d)
    )


@triton.jit(do_not_specialize=["n_rows", "n_accesses"])
def _add_kernel(
    table, x, weights, other_table, other_x, other_weights, token, rows, offsets, n_rows, n_accesses, d,
    BOTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    feature = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.load(offsets + place, mask=place < n_rows, other=n_accesses)
    end = tl.load(offsets + place + 1, mask=place + 1 < n_rows, other=n_accesses)
    row = tl.load(rows + place, mask=place < n_rows, other=0)
    target = row[:, None] * d + feature[None, :]
    mask = (place[:, None] < n_rows) & (feature[None, :] < d)
    total = _sums(x, weights, token, begin, end, feature, d, BLOCK_R, BLOCK_A, BLOCK_D)
    tl.store(table + target, tl.load(table + target, mask=mask, other=0.0) + total, mask=mask)
    if BOTH:
        total = _sums(other_x, other_weights, token, begin, end, feature, d, BLOCK_R, BLOCK_A, BLOCK_D)
        tl.store(other_table + target, tl.load(other_table + target, mask=mask, other=0.0) + total, mask=mask)


# Tokens of a window, `time` of each row of the batch: the first `carried` of a row are in `early`, the others in
# `retrieved`, the first `pairs` have targets. All three come with the strides of a row and a token.


@triton.jit(do_not_specialize=["n", "time", "carried", "paired"])
def _recall_kernel(
    table, ids, weights, retrieved, early, targets, error, n, slots, d, time, carried, paired,
    retrieved_row, early_row, target_row, target_token, target_feature,
    KEEP_EARLY: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    feature = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_T, BLOCK_D], error.dtype.element_ty)
    for start in range(0, slots, BLOCK_J):
        slot = start + tl.arange(0, BLOCK_J)
        place = token[:, None] * slots + slot[None, :]
        used = (token[:, None] < n) & (slot[None, :] < slots)
        row = tl.load(ids + place, mask=used, other=0)
        weight = tl.load(weights + place, mask=used, other=0.0)
        mask = used[:, :, None] & (feature < d)[None, None, :]
        values = tl.load(table + row[:, :, None] * d + feature[None, None, :], mask=mask, other=0.0)
        total += tl.sum(weight[:, :, None] * values, axis=1)
    batch_row = (token // time)[:, None]
    at = (token % time)[:, None]
    mask = (token[:, None] < n) & (feature[None, :] < d)
    tl.store(
        retrieved + batch_row * retrieved_row + (at - carried) * d + feature[None, :],
        total,
        mask=mask & (at >= carried),
    )
    if KEEP_EARLY:
        tl.store(early + batch_row * early_row + at * d + feature[None, :], total, mask=mask & (at < carried))
    target = targets + batch_row * target_row + at * target_token + feature[None, :] * target_feature
    total -= tl.load(target, mask=mask & (at < paired), other=0.0)
    tl.store(error + token[:, None] * d + feature[None, :], total, mask=mask)


@triton.jit(do_not_specialize=["n", "time", "carried", "paired"])
def _recall_backward_kernel(
    d_table, ids, coefficients, retrieved, early, targets, d_retrieved, d_targets, error, d_read, d_coefficients,
    n, slots, d, time, carried, paired,
    retrieved_row, early_row, target_row, target_token, target_feature, d_retrieved_row, d_target_row,
    BLOCK_T: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    slot = tl.arange(0, BLOCK_J)
    place = token[:, None] * slots + slot[None, :]
    used = (token[:, None] < n) & (slot[None, :] < slots)
    row = tl.load(ids + place, mask=used, other=0)
    coefficient = tl.load(coefficients + place, mask=used, other=0.0)
    batch_row = (token // time)[:, None]
    at = (token % time)[:, None]
    dots = tl.zeros([BLOCK_T, BLOCK_J], error.dtype.element_ty)
    for start in range(0, d, BLOCK_D):
        feature = start + tl.arange(0, BLOCK_D)
        mask = (token[:, None] < n) & (feature[None, :] < d)
        new = mask & (at >= carried)
        here = early + batch_row * early_row + at * d + feature[None, :]
        mine = tl.load(here, mask=mask & (at < carried), other=0.0)
        here = retrieved + batch_row * retrieved_row + (at - carried) * d + feature[None, :]
        mine += tl.load(here, mask=new, other=0.0)
        here = targets + batch_row * target_row + at * target_token + feature[None, :] * target_feature
        mine -= tl.load(here, mask=mask & (at < paired), other=0.0)
        tl.store(error + token[:, None] * d + feature[None, :], mine, mask=mask)

        values_mask = used[:, :, None] & (feature < d)[None, None, :]
        values = tl.load(d_table + row[:, :, None] * d + feature[None, None, :], mask=values_mask, other=0.0)
        dots += tl.sum(values * mine[:, None, :], axis=2)
        d_error = tl.sum(coefficient[:, :, None] * values, axis=1)
        here = d_targets + batch_row * d_target_row + at * d + feature[None, :]
        tl.store(here, -d_error, mask=mask & (at < paired))
        here = d_retrieved + batch_row * d_retrieved_row + (at - carried) * d + feature[None, :]
        d_error += tl.load(here, mask=new, other=0.0)
        tl.store(d_read + token[:, None] * d + feature[None, :], d_error, mask=mask)
    tl.store(d_coefficients + place, dots, mask=used)


def row_constants(d: int, slots: int) -> dict[str, int]:
    """Tokens, accesses of each, and features that a program works on at a time; all of each token's with `whole`."""
    tokens, accesses = 1, min(8, triton.next_power_of_2(slots))
    if os.environ.get("TRITON_INTERPRET") == "1":  # there a program costs more than what it does
        tokens, accesses = 16, min(4, accesses)
    return {"BLOCK_T": tokens, "BLOCK_J": accesses, "BLOCK_D": min(512, triton.next_power_of_2(d))}


def backward_constants(d: int, slots: int) -> dict[str, int]:
    """Of `_recall_backward_kernel`, which has all accesses of a token at once, and so fewer features."""
    accesses = triton.next_power_of_2(slots)
    features = min(triton.next_power_of_2(d), 512, max(16, 4096 // accesses))
    return {"BLOCK_T": row_constants(d, slots)["BLOCK_T"], "BLOCK_J": accesses, "BLOCK_D": features}


def step_constants(d: int) -> dict[str, int]:
    """Rows, accesses of each (few rows have more than 4), and features that a program works on at a time."""
    constants = row_constants(d, 4)
    return dict(zip(("BLOCK_R", "BLOCK_A", "BLOCK_D"), constants.values()))


def _read(table: Tensor, accesses: Accesses, weights: Tensor) -> Tensor:
    (n, slots), d = accesses.ids.shape, table.shape[1]
    out, constants = table.new_empty((n, d)), row_constants(d, slots)
    grid = (triton.cdiv(n, constants["BLOCK_T"]), triton.cdiv(d, constants["BLOCK_D"]))
    if n:
        _launch(
            _read_kernel, grid, table.contiguous(), accesses.ids, weights.contiguous(), out, n, slots, d, **constants
        )
    return out


def _gather_dot(table: Tensor, accesses: Accesses, x: Tensor) -> Tensor:
    (n, slots), d = accesses.ids.shape, table.shape[1]
    out, constants = table.new_empty((n, slots)), row_constants(d, slots)
    grid = (triton.cdiv(n, constants["BLOCK_T"]), triton.cdiv(slots, constants["BLOCK_J"]))
    if n:
        _launch(_dot_kernel, grid, table.contiguous(), accesses.ids, x.contiguous(), out, n, slots, d, **constants)
    return out


def _spread(accesses: Accesses, x: Tensor, sorted_weights: Tensor) -> Tensor:
    n_rows, d = len(accesses.rows), x.shape[1]
    out, constants = x.new_empty((n_rows, d)), step_constants(d)
    grid = (triton.cdiv(n_rows, constants["BLOCK_R"]), triton.cdiv(d, constants["BLOCK_D"]))
    tensors = x.contiguous(), sorted_weights.contiguous(), accesses.token, accesses.offsets, out
    if n_rows:
        _launch(_spread_kernel, grid, *tensors, n_rows, len(accesses.token), d, **constants)
    return out


def _launch_add(tables: list[Tensor], accesses: Accesses, added: list[tuple[Tensor, Tensor]]) -> None:
    n_rows, d = len(accesses.rows), tables[0].shape[1]
    for table in tables:
        if not table.is_contiguous():
            raise ValueError(f"rows are added in place to a contiguous table, got strides {table.stride()}")
    tensors = [t for table, parts in zip(tables, added) for t in (table, *(p.contiguous() for p in parts))]
    tensors = [*tensors, *tensors][:6]  # of one table, what is not used
    constants = step_constants(d)
    grid = (triton.cdiv(n_rows, constants["BLOCK_R"]), triton.cdiv(d, constants["BLOCK_D"]))
    sizes = n_rows, len(accesses.token), d
    if n_rows:
        places = accesses.token, accesses.rows, accesses.offsets
        _launch(_add_kernel, grid, *tensors, *places, *sizes, BOTH=len(tables) == 2, **constants)


def _add(table: Tensor, accesses: Accesses, x: Tensor, sorted_weights: Tensor) -> None:
    _launch_add([table], accesses, [(x, sorted_weights)])


def _add_both(
    first: Tensor, second: Tensor, accesses: Accesses, to_first: tuple[Tensor, Tensor], to_second: tuple[Tensor, Tensor]
) -> None:
    _launch_add([first, second], accesses, [to_first, to_second])


def _recall(table: Tensor, accesses: Accesses, weights: Tensor, window: Window, rows: Rows) -> Tensor:
    (n, slots), d = accesses.ids.shape, table.shape[1]
    error, constants = table.new_empty((n, d)), row_constants(d, slots)
    retrieved, early, targets = _of_window(window, rows)
    grid = (triton.cdiv(n, constants["BLOCK_T"]), triton.cdiv(d, constants["BLOCK_D"]))
    tensors = table, accesses.ids, weights.contiguous(), retrieved, early, targets, error
    sizes = n, slots, d, window.time, window.carried, window.pairs
    strides = retrieved.stride(0), early.stride(0), *targets.stride()
    _launch(_recall_kernel, grid, *tensors, *sizes, *strides, KEEP_EARLY=rows.early is not None, **constants)
    return error


def _of_window(window: Window, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    retrieved = rows.retrieved[:, window.output]
    early = retrieved if rows.early is None else rows.early[:, window.early]
    return retrieved, early, rows.targets[:, window.targets]


def _recall_backward(
    d_table: Tensor,
    accesses: Accesses,
    coefficients: Tensor,
    window: Window,
    rows: Rows,
    d_retrieved: Tensor,
    d_targets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    (n, slots), d = accesses.ids.shape, d_table.shape[1]
    constants = backward_constants(d, slots)
    error, d_read, d_coefficients = d_table.new_empty((n, d)), d_table.new_empty((n, d)), d_table.new_empty((n, slots))
    retrieved, early, targets = _of_window(window, rows)
    d_retrieved, d_targets = d_retrieved[:, window.output], d_targets[:, window.targets]
    tensors = d_table, accesses.ids, coefficients.contiguous(), retrieved, early, targets, d_retrieved, d_targets
    sizes = n, slots, d, window.time, window.carried, window.pairs
    strides = retrieved.stride(0), early.stride(0), *targets.stride(), d_retrieved.stride(0), d_targets.stride(0)
    grid = (triton.cdiv(n, constants["BLOCK_T"]), 1)
    _launch(_recall_backward_kernel, grid, *tensors, error, d_read, d_coefficients, *sizes, *strides, **constants)
    return error, d_read, d_coefficients


TRITON = Kernels(_address, _read, _gather_dot, _spread, _add, _recall, _recall_backward, _add_both)
run = functools.partial(run_with, kernels=TRITON)
