"""FwPKM: the whole op forward, forward and backward, and decoding, at three sizes; and its pieces by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.benchmarks.measures.op_work import FwpkmWork
from mixerzoo.mixers.ops.fwpkm import OP as op
from mixerzoo.mixers.ops.fwpkm.primitives import TORCH, Accesses

from .conftest import DEVICE, backends

# n_subkeys, width of keys and values, chunk size, tokens
SIZES = {"small": (32, 64, 64, 256), "medium": (128, 256, 128, 1024), "released": (512, 512, 512, 2048)}
TOP_K = 8
PIECES = 20  # calls in a round
DENSE = "the dense definition takes seconds and gigabytes here; the suite fwpkm-speed measures it"


@pytest.fixture(scope="module", params=SIZES)
def work(request: pytest.FixtureRequest) -> FwpkmWork:
    n_subkeys, width, chunk_size, tokens = SIZES[request.param]
    options = {"n_subkeys": n_subkeys, "d_k": width, "d_v": width, "chunk_size": chunk_size, "top_k": TOP_K}
    sizes: dict[str, Any] = {"d_model": 16, "batch": 1, "length": tokens, "decode_chunks": 1}
    return FwpkmWork(options, **sizes, seed=0, device=DEVICE, dtype=torch.float32)


@pytest.mark.parametrize("backend", backends(op))
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_op(work: FwpkmWork, mode: str, backend: str, timed: Any) -> None:
    if backend == "reference" and work.table_bytes > 10**7:
        pytest.skip(DENSE)
    call = {"forward": work.forward, "train": work.train}[mode]
    timed(lambda: call(backend, work.length))


@pytest.mark.parametrize("backend", backends(op))
def test_decode_a_chunk(work: FwpkmWork, backend: str, timed: Any) -> None:
    if backend == "reference" and work.table_bytes > 10**7:
        pytest.skip(DENSE)
    state = work.decode(backend, work.context(backend, work.length), 1)
    timed(lambda: work.decode(backend, state, work.chunk_size))


@pytest.fixture
def chunk(work: FwpkmWork, normal: Any) -> tuple[torch.Tensor, Accesses, torch.Tensor, torch.Tensor]:
    """One chunk's compact table, accesses, weights and tokens, a few slots shared."""
    rows, n, width = work.chunk_size * TOP_K, work.chunk_size, work.values.shape[1]
    ids = (normal(n, TOP_K).abs() * rows / 4).long().clamp_max(rows - 1)
    return normal(rows, width), Accesses.to(ids, rows), normal(n, TOP_K).softmax(-1), normal(n, width)


@pytest.mark.parametrize("score", ["idw", "dot"])
def test_address_a_chunk(work: FwpkmWork, score: Any, timed: Any) -> None:
    queries = work.tokens[0][:, : work.chunk_size]
    halves = queries.unflatten(-1, (2, -1)).permute(0, 2, 3, 1, 4)
    keys = work.keys.detach()[None]
    timed(lambda: TORCH.address(halves, keys, TOP_K, score), PIECES)


def test_read_a_chunk(chunk: Any, timed: Any) -> None:
    table, accesses, weights, _ = chunk
    timed(lambda: TORCH.read(table, accesses, weights), PIECES)


def test_gather_dot_of_a_chunk(chunk: Any, timed: Any) -> None:
    table, accesses, _, x = chunk
    timed(lambda: TORCH.gather_dot(table, accesses, x), PIECES)


def test_update_rows_of_a_chunk(chunk: Any, timed: Any) -> None:
    table, accesses, weights, x = chunk
    sorted_weights = -1e-6 * accesses.sort(weights)
    timed(lambda: TORCH.add(table, accesses, x, sorted_weights), PIECES)
