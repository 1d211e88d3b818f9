"""FwPKM: a sparse key-value memory that the sequence itself rewrites, chunk by chunk (Zhao & Jones, arXiv 2601.00671).

Notable: the memory has `n_subkeys**2` slots but a token touches `heads * top_k` of them; its update is one gradient
step per chunk, so a key met once is found again however far back it was; tokens of a chunk do not see each other in it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..documents import Documents
from ..interface import MixerCard, NotFiniteInputError
from ..ops.chunks import Boundary, check_chunk_size
from ..ops.fwpkm import OP, FwpkmOptions, FwpkmState, finish, fwpkm
from ..ops.fwpkm.problem import KeyGradient, KeyObjective, Nonlinearity
from ..ops.product_keys import Score
from ..options import option
from ..registry import register_mixer
from ..state import MixerState
from ..stepping import Stepper, check_own
from .fast_weights import FastWeightMixer, at_least_float32, standardise
from .fwpkm_inspection import recorder
from .fwpkm_stepping import FwpkmStepper


@dataclass(frozen=True, eq=False)
class FwPKMState(MixerState):
    """fast: what the sequences wrote over the shared initial memory, and the unfinished chunk."""

    fast: FwpkmState

    @property
    def slots(self) -> Tensor:
        """The slots that were written, `[written]`: `memory * n_slots + slot`, sorted."""
        return self.fast.slots

    @property
    def rows(self) -> Tensor:
        """The values of `slots`, `[written, d_v]`."""
        return self.fast.rows

    @property
    def keys(self) -> Tensor | None:
        """The sub-keys, `[memories, heads, 2, n_subkeys, d_k/2]`; None until the first rewrite."""
        return self.fast.keys


@register_mixer
class FwPKM(FastWeightMixer):
    """Fast-weight product key memory with its projections: `Wo n4(g * r + (1 - g) * v)`, see `mixers.ops.fwpkm.fwpkm`.

    `r` is what the memory retrieves for the query `Wq n1(x)`; `v = standardise(Wv n2(x))` is what it learns to return
    for the query `lookahead` tokens before; `g = sigmoid(wg . n3(x))` gates both. The defaults are the released sizes.

    nonlinearity, clip, weight_decay, key_gradient, ...: see the op. chunk_size may be set to another value between
    texts; with one as large as a text, `finish` makes one update of all of it. A state within a text refuses another
    one; after `finish` it takes any.
    scope: `sequence` or `batch` as in the op, or `persistent`: the rows of a batch share one memory that outlives the
    call, see `kept_state`; results then depend on the order of the calls.
    gate: without, the layer is `Wo n4(r)` and all pairs weigh the same. gated_loss: without, the gates mix but do not
    weigh the pairs in the memory's loss.
    initial_memory: the slots before a sequence are `random` (fixed), `zero`, or `learned`; the keys are always learned.

    Raises `NotFiniteInputError` for NaN or infinite input: on the CPU, where looking costs little, and with a
    persistent memory on every device. Elsewhere NaN shows in the output; the state that was given is unharmed.
    """

    kept_state = cast("FwPKMState | None", None)
    """With scope `persistent`: the state after the last call, detached. A call without state writes its unfinished
    chunk and goes on with its memory. It is no part of `state_dict`; its own `save` writes it to a file."""

    card = MixerCard(
        name="fwpkm",
        family="memory",
        summary="Sparse product-key memory, rewritten once a chunk by a gradient step",
        paper="Zhao & Jones, Fast-weight Product Key Memory",
        arxiv="2601.00671",
        year=2026,
        state_growth="bounded",
        recurrence="V_s -= eta (heads k / count_s) sum_t g_t p_ts (r_t - v_{t+1}) per chunk,  r_t = sum_s p_ts V_s",
        limits="tokens of a chunk do not see each other in the memory; training walks chunk after chunk",
        ops=(OP,),
        parallel=False,
        compile_note="which rows a chunk rewrites depends on the data: the memory is left out of the graphs",
        low_precision_tolerance=0.1,  # a rounded query may pick another slot
    )

    heads: int = option("heads, each with sub-keys of its own; the slots are shared", default=1, least=1, small=2)
    d_k: int = option("width of a head's query, even", default=512, least=2, small=16)
    d_v: int = option("width of a slot", default=512, least=2, small=16)  # one feature has no standard deviation
    n_subkeys: int = option(
        "sub-keys of each codebook; the memory has n_subkeys^2 slots", default=512, least=1, small=8
    )
    top_k: int = option("slots that a head reads", default=8, least=1, small=4)
    chunk_size: int = option("tokens between rewrites", default=512, least=1, small=16, piece=True)
    lookahead: int = option("tokens from a query to its target", default=1, least=0)
    score: Score = option("of a query half and a sub-key", default="idw")
    temperature: float = option("that the scores are divided by", default=1.0, above=0)
    learning_rate: float = option("of the memory's own steps", default=1.0, least=0)
    address_weight: float = option("of the entropies in the keys' objective", default=1.0)
    key_objective: KeyObjective = option("what the keys follow", default="address")
    boundary: Boundary = option("what becomes of pairs across an edge", default="carry")
    scope: Literal["sequence", "batch", "persistent"] = option("who shares a memory", default="sequence")
    nonlinearity: Nonlinearity = option("what makes scores weights", default="softmax")
    weight_decay: float = option("of accessed rows, decoupled from the gradient", default=0.0, least=0)
    clip: float | None = option("largest 2-norm of a row's gradient; None: unlimited", default=None, above=0)
    key_gradient: KeyGradient = option("through the step of the keys", default="exact")
    gate: bool = option("mix what is retrieved with the target", default=True)
    gated_loss: bool = option("weigh the pairs of the memory's loss with the gates", default=True)
    value_norm: Literal["standardise", "l2", "raw"] = option(
        "of the targets: zero mean and unit deviation, unit 2-norm, or none", default="standardise"
    )
    query_norm: Literal["standardise", "raw"] = option("of each head's query", default="raw")
    initial_memory: Literal["random", "zero", "learned"] = option("the slots before a sequence", default="random")

    def build(self) -> None:
        FwpkmOptions(**self.settings)  # refuses what does not fit now, not at the first call
        heads, d_k, d_v, n_subkeys = self.heads, self.d_k, self.d_v, self.n_subkeys
        if d_k % 2:
            raise ValueError(f"fwpkm needs an even d_k, got {d_k}")
        if self.top_k > n_subkeys:
            raise ValueError(f"top_k must not exceed n_subkeys, got {self.top_k} and {n_subkeys}")
        self.normalise_queries = _NORMS[self.query_norm]
        self.add_projections(heads * d_k, d_v, gate=self.gate, normalise_targets=_NORMS[self.value_norm])
        self.keys = nn.Parameter(torch.empty(heads, 2, n_subkeys, d_k // 2).uniform_(-(d_k**-0.5), d_k**-0.5))
        values = torch.zeros(n_subkeys**2, d_v)
        if self.initial_memory != "zero":
            values.normal_(std=d_v**-0.5)
        if self.initial_memory == "learned":
            self.values = nn.Parameter(values)
        else:
            self.register_buffer("values", values, persistent=self.initial_memory == "random")

    def mix(self, x: Tensor, state: FwPKMState | None, return_state: bool) -> tuple[Tensor, FwPKMState | None]:
        queries, targets, gates = self.project(x)
        output = fwpkm(
            self.normalise_queries(queries.unflatten(-1, (self.heads, -1))),
            targets,
            gates if self.gated_loss else None,
            self.keys,
            self.values,
            **self.settings,
            state=None if state is None else state.fast,
            return_state=return_state,
            backend=self.backend,
        )
        if (look := recorder()) is not None:
            look(self, x, state, gates, output)
        y = self.combine(x, output.retrieved, targets, gates)
        return y, self.next_state(FwPKMState, x, state, fast=output.state) if return_state else None

    def stepper(self, max_length: int, static: bool) -> Stepper:
        check_own(self, FwPKM, "forward", "mix", "project", "combine")
        return FwpkmStepper(self)

    def forward(
        self,
        x: Tensor,
        state: MixerState | None = None,
        return_state: bool = False,
        *,
        documents: Documents | None = None,
    ) -> tuple[Tensor, MixerState | None]:
        if documents is not None or not self.keeps_memory:
            return super().forward(x, state, return_state, documents=documents)
        self.check_input(x, state)
        start: Any = self._remembered(len(x), x.device) if state is None else state
        y, after = self.mix(x, start, True)
        self.kept_state = after and after.detach()
        return y, after if return_state else None

    @property
    def keeps_memory(self) -> bool:
        return self.scope == "persistent"

    @property
    def rows_are_independent(self) -> bool:
        return self.scope == "sequence"

    def reset_memory(self) -> None:
        """With scope `persistent`: forget; the next call without state starts from the initial memory."""
        self.kept_state = None

    @torch.no_grad()
    def _remembered(self, batch: int, device: torch.device) -> FwPKMState | None:
        """The memory that the last call left, for `batch` new texts."""
        if self.kept_state is None:
            return None
        return self.finish(self.kept_state.to(device)).select([0] * batch)

    @property
    def settings(self) -> dict[str, Any]:
        """The options of the op."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return settings | {"scope": "batch" if self.scope == "persistent" else self.scope}

    @property
    def signed_options(self) -> dict[str, Any]:
        # chunk_size may change between texts; the state itself knows with which one its text is read
        return {name: value for name, value in super().signed_options.items() if name != "chunk_size"}

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "chunk_size" and "signature" in self.__dict__:
            FwpkmOptions(**self.settings | {"chunk_size": value})
            if self.kept_state is not None:  # its unfinished chunk is one of the old size
                with torch.no_grad():
                    self.kept_state = self.finish(self.kept_state)
        super().__setattr__(name, value)

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
        super().check_state(state)
        if isinstance(state, FwPKMState):
            check_chunk_size(state.fast, self.chunk_size)  # the signature holds all other options

    def finish(self, state: FwPKMState) -> FwPKMState:
        self.check_state(state)
        fast = finish(state.fast, self.keys, self.values, backend=self.backend, **self.settings)
        return replace(state, position=0, fast=fast)

    def max_state_nbytes(self, batch: int, dtype: torch.dtype = torch.float32) -> int:
        memories = batch if self.scope == "sequence" else 1
        weight_bytes = torch.promote_types(self.values.dtype, torch.float32).itemsize
        slots, d_v = self.values.shape
        table = 2 * slots * (d_v * weight_bytes + torch.long.itemsize)  # the log may hold a slot more than once
        pending = self.max_pending_nbytes(batch, FwpkmOptions(**self.settings).chunks, weight_bytes)
        return memories * (table + self.keys.numel() * weight_bytes) + pending


def _unit_length(x: Tensor) -> Tensor:
    """Unit 2-norm over the features, at least in float32; zero stays zero."""
    return F.normalize(at_least_float32(x), dim=-1)


_NORMS = {"standardise": standardise, "l2": _unit_length, "raw": at_least_float32}
_SETTINGS = tuple(field.name for field in fields(FwpkmOptions))
