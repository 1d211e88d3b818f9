"""Packed documents: several texts laid end to end in one row, none of which sees another."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Documents = Tensor | Sequence[int]
"""Cumulative lengths `[n + 1]`, as `cu_seqlens` elsewhere: document i is `x[:, documents[i] : documents[i + 1]]`."""


def document_lengths(documents: Documents, total: int) -> list[int]:
    """The lengths of the documents. Raises `ValueError` unless they are at least 1 and make up `total` tokens."""
    if isinstance(documents, Tensor) and (documents.ndim != 1 or documents.is_floating_point()):
        raise ValueError(f"documents must be cumulative lengths [n + 1], got {documents.dtype} {list(documents.shape)}")
    edges: list[int] = documents.tolist() if isinstance(documents, Tensor) else [int(edge) for edge in documents]
    lengths = [end - start for start, end in itertools.pairwise(edges)]
    if not lengths or edges[0] != 0 or edges[-1] != total or min(lengths) < 1:
        shown = ", ".join(map(str, edges[:8])) + (", ..." if len(edges) > 8 else "")
        raise ValueError(f"documents must rise from 0 to the {total} tokens of x, got [{shown}]")
    return lengths


def run_packed(run: Callable[[Tensor], Tensor], x: Tensor, lengths: Sequence[int], *, together: bool) -> Tensor:
    """`run` on every document of `x [1, total, d_model]` by itself, and their outputs end to end again.

    together: documents of similar length go as rows of one batch, filled up behind their ends; a causal mixer whose
    rows do not see each other gives the same result, and at most half of what it computes is thrown away.
    """
    pieces = x[0].split(list(lengths))
    groups: dict[int, list[int]] = defaultdict(list)
    for i, length in enumerate(lengths):
        groups[(length - 1).bit_length() if together else -i].append(i)
    outputs: dict[int, Tensor] = {}
    for members in groups.values():
        y = run(pad_sequence([pieces[i] for i in members], batch_first=True))
        outputs.update((i, y[row, : lengths[i]]) for row, i in enumerate(members))
    return torch.cat([outputs[i] for i in range(len(lengths))])[None]
