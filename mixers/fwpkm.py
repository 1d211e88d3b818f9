"""FwPKM: a sparse key-value memory that the sequence itself rewrites, chunk by chunk (Zhao & Jones, arXiv 2601.00671).

Notable: the memory has `n_subkeys**2` slots but a token touches `heads * top_k` of them; its update is one gradient
step per chunk, so a key met once is found again however far back it was; tokens of a chunk do not see each other in it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .fast_weights import FastWeightMixer, at_least_float32, standardise, unit_length
from .inspection import recorder
from .interface import MixerCard, NotFiniteInputError
from .ops.chunks import Boundary
from .ops.fwpkm import FwpkmOptions, FwpkmState, finish, fwpkm
from .ops.fwpkm.problem import KeyGradient, KeyObjective, Nonlinearity, Score, with_chunk_size
from .registry import register_mixer
from .state import MixerState

Scope = Literal["sequence", "batch", "persistent"]
InitialMemory = Literal["random", "zero", "learned"]
ValueNorm = Literal["standardise", "l2", "raw"]
QueryNorm = Literal["standardise", "raw"]


@register_mixer
class FwPKM(FastWeightMixer):
    """Fast-weight product key memory with its projections: `Wo n4(g * r + (1 - g) * v)`, see `mixers.ops.fwpkm.fwpkm`.

    `r` is what the memory retrieves for the query `Wq n1(x)`; `v = standardise(Wv n2(x))` is what it learns to return
    for the query `lookahead` tokens before; `g = sigmoid(wg . n3(x))` gates both. The defaults are the released sizes.

    d_k, d_v: width of queries and of slots. n_subkeys: codebook size. learning_rate: of the memory's own steps.
    nonlinearity, clip, weight_decay, key_gradient, ...: see the op. chunk_size: also an attribute, to be changed
    between texts; with one as large as a text, `finish` makes one update of all of it.
    scope: `sequence` or `batch` as in the op, or `persistent`: the rows of a batch share one memory that outlives the
    call, see `kept_state`; results then depend on the order of the calls.
    gate: without, the layer is `Wo n4(r)` and all pairs weigh the same. gated_loss: without, the gates mix but do not
    weigh the pairs in the memory's loss. value_norm: of the targets, `standardise` (zero mean, unit deviation), `l2`
    (unit 2-norm) or `raw`; query_norm: of each head's query, `standardise` or `raw`.
    initial_memory: the slots before a sequence are `random` (fixed), `zero`, or `learned`; the keys are always learned.

    Raises `NotFiniteInputError` for NaN or infinite input: on the CPU, where looking costs little, and with a
    persistent memory on every device. Elsewhere NaN shows in the output; the state that was given is unharmed.
    """

    kept_state: FwpkmState | None = None
    """With scope `persistent`: the state after the last call, detached. A call without state writes its unfinished
    chunk and goes on with its memory. It is no part of `state_dict`; its own `save` writes it to a file."""

    card = MixerCard(
        name="fwpkm",
        family="fast-weight memory",
        summary="Sparse product-key memory, rewritten once a chunk by a gradient step",
        paper="Zhao & Jones, Fast-weight Product Key Memory",
        arxiv="2601.00671",
        year=2026,
        state_growth="bounded",
        backends=("triton", "torch", "reference"),
        parallel=False,
        low_precision_tolerance=0.1,  # a rounded query may pick another slot
    )

    def __init__(
        self,
        d_model: int,
        *,
        heads: int = 1,
        d_k: int = 512,
        d_v: int = 512,
        n_subkeys: int = 512,
        top_k: int = 8,
        chunk_size: int = 512,
        lookahead: int = 1,
        score: Score = "idw",
        temperature: float = 1.0,
        learning_rate: float = 1.0,
        address_weight: float = 1.0,
        key_objective: KeyObjective = "address",
        boundary: Boundary = "carry",
        scope: Scope = "sequence",
        nonlinearity: Nonlinearity = "softmax",
        weight_decay: float = 0.0,
        clip: float | None = None,
        key_gradient: KeyGradient = "exact",
        gate: bool = True,
        gated_loss: bool = True,
        value_norm: ValueNorm = "standardise",
        query_norm: QueryNorm = "raw",
        initial_memory: InitialMemory = "random",
        backend: str = "auto",
    ) -> None:
        self.settings: dict[str, Any] = {
            "top_k": top_k,
            "chunk_size": chunk_size,
            "lookahead": lookahead,
            "score": score,
            "temperature": temperature,
            "learning_rate": learning_rate,
            "address_weight": address_weight,
            "key_objective": key_objective,
            "boundary": boundary,
            "scope": "batch" if scope == "persistent" else scope,
            "nonlinearity": nonlinearity,
            "weight_decay": weight_decay,
            "clip": clip,
            "key_gradient": key_gradient,
        }
        choices: dict[str, Any] = {
            "scope": scope,
            "gate": gate,
            "gated_loss": gated_loss,
            "value_norm": value_norm,
            "query_norm": query_norm,
            "initial_memory": initial_memory,
        }
        sizes = {"heads": heads, "d_k": d_k, "d_v": d_v, "n_subkeys": n_subkeys}
        super().__init__(d_model, **sizes, **self.settings | choices, backend=backend)
        for name, kind in _CHOICES.items():
            if choices[name] not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {choices[name]!r}")
        FwpkmOptions(**self.settings)  # refuses what does not fit now, not at the first call
        if d_k % 2 or d_v < 2 or min(sizes.values()) < 1:  # one feature has no standard deviation
            raise ValueError(f"fwpkm needs an even d_k, d_v of at least 2 and other sizes of at least 1, got {sizes}")
        if top_k > n_subkeys:
            raise ValueError(f"top_k must not exceed n_subkeys, got {top_k} and {n_subkeys}")
        self.heads, self.backend, self.gated_loss = heads, backend, gated_loss
        self.normalise_queries = _NORMS[query_norm]
        self.add_projections(heads * d_k, d_v, gate=gate, normalise_targets=_NORMS[value_norm])
        self.keys = nn.Parameter(torch.empty(heads, 2, n_subkeys, d_k // 2).uniform_(-(d_k**-0.5), d_k**-0.5))
        values = torch.zeros(n_subkeys**2, d_v)
        if initial_memory != "zero":
            values.normal_(std=d_v**-0.5)
        if initial_memory == "learned":
            self.values = nn.Parameter(values)
        else:
            self.register_buffer("values", values, persistent=initial_memory == "random")

    def mix(self, x: Tensor, state: FwpkmState | None, return_state: bool) -> tuple[Tensor, FwpkmState | None]:
        queries, targets, gates = self.project(x)
        output = fwpkm(
            self.normalise_queries(queries.unflatten(-1, (self.heads, -1))),
            targets,
            gates if self.gated_loss else None,
            self.keys,
            self.values,
            **self.settings,
            state=state,
            return_state=return_state,
            backend=self.backend,
        )
        if (look := recorder()) is not None:
            look(self, x, state, gates, output)
        y = self.combine(x, output.retrieved, targets, gates)
        return y, output.state and replace(output.state, signature=self.signature)

    def forward(
        self, x: Tensor, state: MixerState | None = None, return_state: bool = False
    ) -> tuple[Tensor, MixerState | None]:
        if not self.keeps_memory:
            return super().forward(x, state, return_state)
        self.check_input(x, state)
        start: Any = self._remembered(len(x), x.device) if state is None else state
        y, after = self.mix(x, start, True)
        self.kept_state = after and after.detach()
        return y, after if return_state else None

    @property
    def keeps_memory(self) -> bool:
        return self.options["scope"] == "persistent"

    def reset_memory(self) -> None:
        """With scope `persistent`: forget; the next call without state starts from the initial memory."""
        self.kept_state = None

    @torch.no_grad()
    def _remembered(self, batch: int, device: torch.device) -> FwpkmState | None:
        """The memory that the last call left, for `batch` new texts."""
        if self.kept_state is None:
            return None
        return self.finish(self.kept_state.to(device)).select([0] * batch)

    @property
    def chunk_size(self) -> int:
        """Tokens between rewrites. A state within a text refuses another one; after `finish` it takes any.

        Setting it raises `ValueError` unless it is larger than `lookahead`.
        """
        return self.settings["chunk_size"]

    @chunk_size.setter
    def chunk_size(self, chunk_size: int) -> None:
        FwpkmOptions(**self.settings | {"chunk_size": chunk_size})
        if self.kept_state is not None:  # its unfinished chunk is one of the old size
            with torch.no_grad():
                self.kept_state = self.finish(self.kept_state)
        self.settings["chunk_size"] = self.options["chunk_size"] = chunk_size

    def check_input(self, x: Tensor, state: MixerState | None) -> None:
        super().check_input(x, state)
        if (x.device.type != "cpu" and not self.keeps_memory) or torch.compiler.is_compiling():
            return
        # the sum is quick, but that of large numbers may overflow
        total = x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32))
        if not total.isfinite() and not (finite := x.isfinite().flatten(1).all(1)).all():
            rows = finite.logical_not().nonzero()[:, 0].tolist()
            where = f" at {self.place}" if self.place else ""
            raise NotFiniteInputError(f"{self.card.name}{where} expects finite x, got NaN or infinity in rows {rows}")

    def check_state(self, state: MixerState) -> None:
        if isinstance(state, FwpkmState) and state.position == 0:
            state = replace(state, signature=with_chunk_size(state.signature, self.chunk_size))
        super().check_state(state)

    def finish(self, state: FwpkmState) -> FwpkmState:
        self.check_state(state)
        return finish(state, self.keys, self.values, backend=self.backend, **self.settings)

    def max_state_nbytes(self, batch: int, dtype: torch.dtype = torch.float32) -> int:
        memories = batch if self.settings["scope"] == "sequence" else 1
        weight_bytes = torch.promote_types(self.values.dtype, torch.float32).itemsize
        slots, d_v = self.values.shape
        table = 2 * slots * (d_v * weight_bytes + torch.long.itemsize)  # the log may hold a slot more than once
        pending = self.max_pending_nbytes(batch, FwpkmOptions(**self.settings).chunks, weight_bytes)
        return memories * (table + self.keys.numel() * weight_bytes) + pending


_NORMS = {"standardise": standardise, "l2": unit_length, "raw": at_least_float32}
_CHOICES = {"scope": Scope, "value_norm": ValueNorm, "query_norm": QueryNorm, "initial_memory": InitialMemory}
