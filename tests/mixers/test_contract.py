"""Every registered mixer passes the contract, and `check_mixer` says readably what it found."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from mixerzoo.mixers import (
    ContractError,
    Mixer,
    UnknownMixerError,
    check_mixer,
    create_mixer,
    list_mixers,
    mixer_class,
    option,
    small_options,
)
from mixerzoo.mixers.contract import checks

Softmax: Any = mixer_class("softmax_attention")

VARIANTS = [
    ("softmax_attention", {"kv_heads": 1, "qk_norm": True, "positions": "nope", "conv_size": 3}),
    ("sliding_window_attention", {"kv_heads": 1, "window": 1, "conv_size": 2}),
    ("sliding_window_attention", {"window": 21, "positions": "nope"}),
    ("linear_attention", {"feature_map": "taylor", "d_head": 8, "chunk_size": 7}),
    ("linear_attention", {"feature_map": "identity", "normaliser": False, "conv_size": 4}),
    ("gated_deltanet", {"chunk_size": 5, "conv_size": 0}),
    ("ttt_linear", {"mini_batch_size": 1}),
    ("fwpkm", {"boundary": "drop", "heads": 2}),
    ("fwpkm", {"lookahead": 0, "score": "dot", "chunk_size": 7}),
    ("fwpkm", {"chunk_size": 40, "lookahead": 3}),
    ("fwpkm", {"nonlinearity": "silu", "score": "dot", "learning_rate": 0.1, "clip": 0.5}),
    ("fwpkm", {"weight_decay": 0.1}),
    ("ttt_linear", {"heads": 1, "mini_batch_size": 5, "conv_size": 0, "rope": False, "gate": False}),
    ("ttt_mlp", {"mini_batch_size": 1, "conv_size": 0, "rope": False, "gate": False}),
    ("titans", {"depth": 1, "chunk_size": 1, "conv_size": 0}),
    ("titans", {"depth": 3, "chunk_size": 7}),
    ("lact", {"rank": None, "momentum": False, "muon": True, "chunk_size": 7, "window": 5}),
    ("mesa", {"conv_size": 0, "output_gate": True, "chunk_size": 5}),
    ("gated_kalmanet", {"conv_size": 0, "output_gate": False, "chunk_size": 7, "ridge": 0.5}),
    ("softmax_attention", {"sinks": True, "rotary_fraction": 0.5, "kv_heads": 1}),
    ("gated_attention", {"kv_heads": 1, "positions": "nope", "conv_size": 2}),
    ("differential_attention", {"kv_heads": 1, "positions": "nope"}),
    ("multi_head_latent_attention", {"d_query_latent": 12, "d_value": 10}),
    ("forgetting_attention", {"kv_heads": 1, "qk_norm": False, "token_shift": False, "output_gate": False}),
    ("stick_breaking_attention", {"attend_current": True, "remainder": False, "kv_heads": 1, "conv_size": 3}),
    ("path_attention", {"forgetting": True, "kv_heads": 1, "qk_norm": True, "rank": None, "chunk_size": 5}),
    ("based", {"d_feature": 3, "chunk_size": 7, "d_head": 5}),
    ("rebased", {"d_feature": 5, "chunk_size": 7}),
    ("retention", {"expand_v": 1.0, "heads": 1, "chunk_size": 5}),
    ("lightning_attention", {"layer": 3, "n_layers": 4, "d_head": 5}),
    ("gla", {"expand_v": 0.5, "gate_temperature": 1.0, "chunk_size": 5}),
    ("hgrn2", {"layer": 2, "n_layers": 3, "chunk_size": 5}),
    ("rwkv6", {"layer": 1, "n_layers": 2, "chunk_size": 5}),
    ("rwkv7", {"layer": 1, "n_layers": 2, "chunk_size": 5, "d_head": 4}),
    ("mlstm", {"conv_size": 1, "block_size": 1, "expand": 1.5, "chunk_size": 7}),
    ("slstm", {"conv_size": 0, "layer": 1, "n_layers": 2}),
    ("moba", {"kv_heads": 1, "block_size": 7, "top_k": 3, "conv_size": 2, "qk_norm": True}),
    ("deltaformer", {"kv_heads": 1, "beta": "sigmoid"}),
    ("deltaformer", {"probe": "queries", "beta": "one"}),
    ("native_sparse_attention", {"kv_heads": 1, "compression": "mean"}),
    ("gated_slot_attention", {"kv_heads": 1, "feature_map": "relu", "chunk_size": 7}),
    ("log_linear_attention", {"levels": 3, "groups": 2, "chunk_size": 5}),
    ("mixture_of_memories", {"shared": False, "conv_size": 1, "expand_v": 2.0, "chunk_size": 5}),
    ("raven", {"kv_heads": 1, "decay": "gla", "router": "mlp", "output_gate": False}),
    ("short_convolution", {"conv_size": 1, "expand": 2}),
    ("mamba", {"expand": 1, "dt_rank": 1, "conv_size": 1}),
    ("s4d", {"initialisation": "inv", "discretisation": "bilinear", "chunk_size": 7}),
    ("s4d", {"initialisation": "real", "d_state": 3}),
    ("hyena", {"order": 3, "conv_size": 1, "filter_features": 3}),
    ("rg_lru", {"heads": 1, "width": 24, "conv_size": 1}),
    ("min_gru", {"candidate": "linear", "conv_size": 4, "expand": 1}),
    ("deltanet", {"conv_size": 0, "negative_eigenvalues": True, "output_gate": True, "chunk_size": 5}),
    ("comba", {"correction": 0.02, "conv_size": 0, "chunk_size": 7}),
    ("kimi_delta_attention", {"expand_v": 0.5, "conv_size": 0, "chunk_size": 5}),
    ("gated_deltanet_2", {"expand_v": 0.5, "negative_eigenvalues": True, "chunk_size": 5}),
    ("gated_deltaproduct", {"steps": 3, "forget_gate": False, "conv_size": 0, "chunk_size": 7}),
    ("preconditioned_deltanet", {"squash": 2.0, "conv_size": 0, "output_gate": False, "chunk_size": 5}),
]


@pytest.mark.parametrize("name", list_mixers())
def test_registered_mixers_keep_the_contract(name: str) -> None:
    report = check_mixer(name, compile_backend="aot_eager")
    assert [r.number for r in report] == list(range(1, 13))
    assert all(r.status == "passed" or (r.status == "skipped" and r.reason) for r in report), str(report)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_their_options_keep_the_contract(name: str, options: dict[str, Any]) -> None:
    report = check_mixer(name, options=options, only=[*range(1, 11), 12])
    assert report.passed


def test_inductor_gives_the_same_result() -> None:
    (result,) = check_mixer("softmax_attention", only=[11], compile_backend="inductor")
    if result.status == "skipped":
        pytest.skip(result.reason)
    assert result.status == "passed"


def test_a_report_is_readable_and_ready_for_json() -> None:
    report = check_mixer("softmax_attention", only=[3, 1, 10])
    assert [r.number for r in report] == [1, 3, 10] and len(report) == 3
    assert str(report).startswith("softmax_attention(") and " 3 passed  split-invariant" in str(report)
    values = json.loads(json.dumps(report.to_dict()))
    assert values["passed"] is True
    single = next(m for m in values["results"][1]["measurements"] if m["what"] == "single tokens")
    assert 0 <= single["value"] <= single["limit"] == 1e-9
    assert "comparisons, closest to its limit" in values["results"][1]["detail"]


def test_an_accelerator_repeats_the_checks_in_float32_and_bfloat16() -> None:
    report = check_mixer("softmax_attention", device="cpu", only=[1, 3, 6])
    limits = {m.what.partition(":")[0]: m.limit for m in report.results[1].measurements}
    bfloat16 = Softmax.card.low_precision_tolerance
    assert limits == {"on cpu in float64": 1e-9, "on cpu in float32": 1e-4, "on cpu in bfloat16": bfloat16}


class AddsInTf32(Softmax):
    """What a product with ten bits of mantissa does, on a device whose float32 is not one."""

    def mix(self, x: torch.Tensor, state: Any, return_state: bool) -> Any:
        y, after = super().mix(x, state, return_state)
        return (y * (1 + 1e-3) if x.dtype == torch.float32 else y), after


@pytest.mark.parametrize("backends", [None, ("reference",), ()])
def test_float32_of_an_accelerator_is_held_to_float64_of_the_cpu(backends: tuple[str, ...] | None) -> None:
    """Consistently wrong on the device is wrong as well, whether or not there is another backend to compare with."""
    card = Softmax.card if backends is None else replace(Softmax.card, ops=(), backends=backends)
    mixer = type("Changed", (AddsInTf32,), {"card": card})
    report = check_mixer(mixer, device="cpu", only=[1, 2, 3, 4, 10], raise_on_failure=False)
    assert [r.number for r in report.failures] == [10]
    assert "on cpu in float32" in report.failures[0].reason and "(limit 0.0001)" in report.failures[0].reason


def test_tf32_is_off_and_what_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_F32_DEFAULT", raising=False)
    seen: set[Any] = set()

    class Looks(Softmax):
        def mix(self, x: torch.Tensor, state: Any, return_state: bool) -> Any:
            seen.add((*tf32_switches(), os.environ.get("TRITON_F32_DEFAULT")))
            return super().mix(x, state, return_state)

    torch.set_float32_matmul_precision("high")
    try:
        before = tf32_switches()
        check_mixer(Looks, only=[1])
        assert tf32_switches() == before != (False, False) and "TRITON_F32_DEFAULT" not in os.environ
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == {(False, False, "ieee")}


def tf32_switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.fp32_precision == "tf32", torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_whoever_breaks_the_graph_says_why() -> None:
    class Breaks(Softmax):
        def mix(self, x: torch.Tensor, state: Any, return_state: bool) -> Any:
            torch._dynamo.graph_break()
            return super().mix(x, state, return_state)

    (silent,) = check_mixer(Breaks, only=[11], compile_backend="eager", raise_on_failure=False)
    assert silent.status == "failed" and "more than one graph" in silent.reason
    Breaks.card = replace(Softmax.card, compile_note="it looks at the data")
    (said,) = check_mixer(Breaks, only=[11], compile_backend="eager")
    assert said.status == "passed" and "it looks at the data" in said.detail


def test_a_note_on_compiling_that_no_longer_holds_is_a_failure() -> None:
    stale = with_card(compile_note="it looks at the data")
    (result,) = check_mixer(stale, only=[11], compile_backend="eager", raise_on_failure=False)
    assert result.status == "failed" and "it makes one graph, although the card says" in result.reason


def test_a_failure_in_bfloat16_alone_is_a_failure() -> None:
    class Forgetful(Softmax):
        def mix(self, x: torch.Tensor, state: Any, return_state: bool) -> Any:
            y, after = super().mix(x, state, return_state)
            return (y * (1.5 if return_state else 1) if x.dtype == torch.bfloat16 else y), after

    report = check_mixer(Forgetful, device="cpu", only=[3, 5], raise_on_failure=False)
    assert [r.number for r in report.failures] == [3]
    assert "on cpu in bfloat16: return_state=True" in report.failures[0].reason
    assert "float64" not in report.failures[0].reason


def with_card(**changes: Any) -> type[Mixer]:
    return type("Changed", (Softmax,), {"card": replace(Softmax.card, **changes)})


def skip_reason(mixer: type[Mixer], number: int) -> str:
    (result,) = check_mixer(mixer, only=[number])
    assert result.status == "skipped"
    return result.reason


def test_skips_give_their_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    assert skip_reason(with_card(ops=(), backends=("reference",)), 10) == "one backend only (reference)"
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    assert "inductor needs a C++ compiler" in skip_reason(Softmax, 11)


def test_backends_that_cannot_run_here_are_listed() -> None:
    class Unavailable(Softmax):
        card = replace(Softmax.card, ops=(), backends=("elsewhere", "reference"))

        def mix(self, x: torch.Tensor, state: Any, return_state: bool) -> Any:
            if self.backend == "elsewhere":
                raise RuntimeError("backend 'elsewhere' cannot run: it is elsewhere")
            return super().mix(x, state, return_state)

    assert "elsewhere not compared: backend 'elsewhere' cannot run" in skip_reason(Unavailable, 10)


def test_a_card_without_a_reference_fails() -> None:
    with pytest.raises(ContractError, match="no reference"):
        check_mixer(with_card(ops=(), backends=("sdpa", "flash_attn")), only=[10])


def test_memory_kept_on_purpose_is_no_failure() -> None:
    class Counting(Softmax):
        def build(self) -> None:
            super().build()
            self.register_buffer("calls", torch.zeros(()))

        def mix(self, x: torch.Tensor, state: Any, return_state: bool) -> Any:
            self.calls += 1
            return super().mix(x, state, return_state)

    with pytest.raises(ContractError, match="forward changes calls"):
        check_mixer(Counting, only=[4, 5])
    Counting.card = replace(Softmax.card, keeps_memory=True)
    report = check_mixer(Counting, only=[4, 5])
    assert "changed: calls" in report.results[1].detail


def test_small_options_shrink_only_what_is_larger() -> None:
    class Several(Mixer):
        window: int = option("no default", small=16)
        chunk_size: int = option("larger", default=512, small=16)
        top_k: int = option("smaller already", default=2, small=4)
        heads: int | None = option("may be large", default=None, small=2)
        mode: str = option("no small value", default="fast")

    assert small_options(Several) == {"window": 16, "chunk_size": 16, "heads": 2}
    assert small_options(Several, {"chunk_size": 64}) == {"window": 16, "heads": 2}
    assert small_options(lambda d_model: Several(d_model)) == {}


def test_given_options_win() -> None:
    report = check_mixer("linear_attention", options={"chunk_size": 3}, only=[1])
    assert "chunk_size=3" in report.mixer


def test_the_random_state_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    check_mixer("softmax_attention", only=[1, 8])
    assert torch.equal(torch.rand(3), expected)


def test_it_works_under_no_grad() -> None:
    with torch.no_grad():
        assert check_mixer("softmax_attention", only=[2, 6]).passed


@pytest.mark.parametrize("only", [[0], [13], [1, 99], []])
def test_unknown_numbers_are_refused(only: list[int]) -> None:
    with pytest.raises(ValueError, match="from 1 to 12"):
        check_mixer("softmax_attention", only=only)


def test_mistakes_are_errors_before_any_check() -> None:
    with pytest.raises(UnknownMixerError, match="softmax_attention"):
        check_mixer("softmax_atention")
    with pytest.raises(ValueError, match="no option 'head'"):
        check_mixer("softmax_attention", options={"head": 2})
    with pytest.raises(TypeError, match="got Linear"):
        check_mixer(lambda d_model: torch.nn.Linear(d_model, d_model))
    assert check_mixer(lambda d_model: create_mixer("softmax_attention", d_model, heads=2), only=[1]).passed
