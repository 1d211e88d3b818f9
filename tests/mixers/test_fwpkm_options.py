"""FwPKM: every option of op and layer, on every backend, and what must not break it."""

import ast
import re
from pathlib import Path

import pytest
import torch
from mixerzoo.benchmarks.worker import classify
from mixerzoo.mixers import MixerState, NotFiniteInputError, check_mixer, create_mixer, mixer_options
from mixerzoo.mixers.contract.checks import CHECKS
from mixerzoo.mixers.memory.fast_weights import standardise
from mixerzoo.mixers.ops.fwpkm import fwpkm
from mixerzoo.models import LanguageModel, preset_config
from torch.utils.checkpoint import checkpoint

from .fwpkm_problems import problem, solve

BACKENDS = ("compact", "reference")
SMALL = {"n_subkeys": 8, "d_k": 8, "d_v": 8, "top_k": 3, "chunk_size": 8}


def layer(d_model=8, **options):
    torch.manual_seed(0)
    return create_mixer("fwpkm", d_model, **{**SMALL, **options}).double()


def tokens(batch=2, time=30, d_model=8, seed=1):
    return torch.randn(batch, time, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# The op


@pytest.mark.parametrize("options", [{"clip": 0.3}, {"weight_decay": 0.4}, {"nonlinearity": "silu"}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_exact(options, backend):
    """Finite differences of the whole op, final memory included."""
    inputs = [t.requires_grad_() for t in problem(7, 1, 9, heads=1, d_k=4, d_v=3, n_subkeys=4, query_scale=0.3)]
    options = {"top_k": 2, "chunk_size": 3, "address_weight": 5.0, "learning_rate": 0.5, "backend": backend} | options
    assert torch.autograd.gradcheck(lambda *tensors: solve(tensors, **options), inputs)


@pytest.mark.parametrize("nonlinearity", ["silu", "relu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_without_normalisation_are_functions_of_single_scores(nonlinearity, backend):
    queries, *rest = problem(time=20, n_subkeys=2)
    keys = rest[2]
    output = fwpkm(
        queries, *rest, top_k=2, chunk_size=20, score="dot", temperature=0.7, nonlinearity=nonlinearity, backend=backend
    )
    first, second = (torch.einsum("bthd,hsd->bths", q, k) for q, k in zip(queries.chunk(2, -1), keys.unbind(1)))
    scores = (first[..., :, None] + second[..., None, :]).flatten(-2) / 0.7
    best = scores.topk(2).values
    expected = best * best.sigmoid() if nonlinearity == "silu" else best.clamp(min=0)
    torch.testing.assert_close(output.weights, expected)
    assert nonlinearity == "silu" or ((output.weights == 0).any() and (output.weights > 0).any())


def test_first_order_takes_the_key_step_for_a_constant():
    inputs = [t.requires_grad_() for t in problem(time=20)]
    options = {"top_k": 3, "chunk_size": 8, "address_weight": 5.0}
    exact, first = (solve(inputs, **options, key_gradient=name) for name in ("exact", "first_order"))
    for found, expected in zip(first, exact):
        assert found.equal(expected)
    assert not exact[2].equal(inputs[3].expand_as(exact[2]))  # the keys did move
    through_queries, through_keys = torch.autograd.grad(first[2].sum(), [inputs[0], inputs[3]], allow_unused=True)
    assert through_queries is None and through_keys.equal(torch.full_like(through_keys, 2.0))  # two memories
    assert torch.autograd.grad(exact[2].sum(), inputs[0])[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "unfit"),
    [
        ({"key_gradient": "first_order"}, "gradients"),  # not those of finite differences
        # slots that bfloat16 confuses weigh more than the tolerance of the card, which is for the defaults
        ({"gate": False, "value_norm": "l2", "query_norm": "standardise"}, "low precision"),
        ({"gated_loss": False, "value_norm": "raw"}, "low precision"),
    ],
)
def test_options_keep_the_contract_but_for_what_they_are_about(options, unfit):
    numbers = [number for number, (title, _) in CHECKS.items() if title not in (unfit, "torch.compile")]
    assert len(numbers) == 10 and check_mixer("fwpkm", options=options, only=numbers).passed


@pytest.mark.parametrize("backend", BACKENDS)
def test_key_objectives_add_up(backend):
    *inputs, keys, values = problem(time=8)
    moved = {}
    for objective in ("address", "memory", "both", "none"):
        options = {"top_k": 3, "chunk_size": 8, "address_weight": 5.0, "key_objective": objective, "backend": backend}
        moved[objective] = solve([*inputs, keys, values], **options)[2] - keys
    assert moved["address"].abs().sum() > 0 and moved["memory"].abs().sum() > 0
    torch.testing.assert_close(moved["both"], moved["address"] + moved["memory"])
    assert not moved["none"].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_can_follow_the_memory_loss(backend):
    """Their step is that of half the gated squared error, its mean over tokens and features."""
    queries, targets, gates, keys, values = problem(batch=1, time=8)
    options = {"top_k": 3, "chunk_size": 8, "learning_rate": 0.3, "key_objective": "memory", "backend": backend}
    moved = solve([queries, targets, gates, keys, values], **options)[2][0] - keys
    leaf = keys.clone().requires_grad_()
    read = fwpkm(queries, targets, gates, leaf, values, top_k=3, chunk_size=8).retrieved
    loss = 0.5 * (gates[:, :7, None] * (read[:, :7] - targets[:, 1:]) ** 2).mean()
    torch.testing.assert_close(moved, -0.3 * torch.autograd.grad(loss, leaf)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_row_moves_further_than_the_clip(backend):
    inputs = problem(time=8)
    options = {"top_k": 3, "chunk_size": 8, "learning_rate": 0.5, "backend": backend}
    free, clipped, loose = ((solve(inputs, **options, clip=c)[3] - inputs[4]) for c in (None, 0.4, 1e6))
    lengths = clipped.norm(dim=-1)
    assert lengths.max() <= 0.5 * 0.4 * (1 + 1e-12) and free.norm(dim=-1).max() > 0.2
    short = free.norm(dim=-1) < 0.2
    torch.testing.assert_close(clipped[short], free[short])
    torch.testing.assert_close(clipped[~short], 0.2 * torch.nn.functional.normalize(free[~short], dim=-1))
    torch.testing.assert_close(loose, free)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_an_update_accesses_decay_and_no_others(backend):
    queries, targets, gates, keys, values = problem(batch=1, time=8)
    options = {"top_k": 3, "chunk_size": 8, "learning_rate": 0.5, "lookahead": 0, "backend": backend}
    # gates are 0, so there is no gradient, only the decay
    state = fwpkm(queries, targets, 0 * gates, keys, values, **options, weight_decay=0.4, return_state=True).state
    slots = fwpkm(queries, targets, gates, keys, values, **options).slots.unique()
    assert state.slots.equal(slots) and 0 < len(slots) < len(values)
    torch.testing.assert_close(state.rows, 0.8 * values[slots])


@pytest.mark.parametrize("options", [{}, {"clip": 0.05}, {"weight_decay": 0.2}])
def test_a_retained_graph_gives_the_same_gradients_again(options):
    inputs = [t.requires_grad_() for t in problem()]
    retrieved = fwpkm(*inputs, top_k=3, chunk_size=7, **options).retrieved
    first, second = (torch.autograd.grad(retrieved.square().sum(), inputs, retain_graph=True) for _ in range(2))
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_activation_checkpointing_gives_the_same_gradients():
    inputs = [t.requires_grad_() for t in problem()]

    def run(*tensors):
        return fwpkm(*tensors, top_k=3, chunk_size=7, clip=0.05).retrieved

    expected = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    loss = checkpoint(run, *inputs, use_reentrant=False).square().sum()
    for _ in range(2):
        for found, wanted in zip(torch.autograd.grad(loss, inputs, retain_graph=True), expected):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"key_objective": "both"}, {"boundary": "drop"}, {"lookahead": 0}])
@pytest.mark.parametrize("time", [21, 24])
def test_what_is_read_and_its_gradients_do_not_depend_on_asking_for_the_state(time, options):
    inputs = [t.requires_grad_() for t in problem(time=time)]
    results = []
    for return_state in (False, True):
        output = fwpkm(*inputs, top_k=3, chunk_size=7, **options, return_state=return_state)
        parts = output.retrieved, output.weights
        results.append((*parts, output.slots, *torch.autograd.grad(sum(p.square().sum() for p in parts), inputs)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_decay_over_many_chunks_costs_no_precision():
    """Undoing it by division would multiply rounding errors by 2 a chunk."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        inputs = [t.requires_grad_() for t in problem(batch=1, time=300, n_subkeys=3, dtype=dtype)]
        retrieved = fwpkm(*inputs, top_k=2, chunk_size=3, weight_decay=0.5, key_objective="none").retrieved
        gradients.append(torch.autograd.grad(retrieved.square().sum(), inputs[4])[0].double())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonlinearity": "gelu"}, "nonlinearity must be one of softmax, silu, relu, got 'gelu'"),
        ({"key_gradient": "second"}, "key_gradient must be one of exact, first_order"),
        ({"weight_decay": 2.0, "learning_rate": 0.5}, "weight_decay times learning_rate must be .* less than 1"),
        ({"weight_decay": -0.1}, "weight_decay .*must be .*at least 0"),
        ({"clip": 0.0}, "clip must be .*or None, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must (not be negative|be a finite number of at least 0)"),
    ],
)
def test_unfit_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fwpkm(*problem(), **{"top_k": 3, "chunk_size": 8} | change)
    with pytest.raises(ValueError, match=message):
        layer(**change)


# ---------------------------------------------------------------------------------------------------------------------
# The layer


def by_hand(mixer, x, *, targets, gates, loss_gates, query=lambda q: q):
    queries = query(mixer.q_proj(mixer.q_norm(x)).unflatten(-1, (mixer.heads, -1)))
    read = fwpkm(queries, targets, loss_gates, mixer.keys, mixer.values, **mixer.settings).retrieved
    mixed = read if gates is None else gates[..., None] * read + (1 - gates[..., None]) * targets
    return mixer.o_proj(mixer.o_norm(mixed))


def gates_of(mixer, x):
    return mixer.gate_proj(mixer.gate_norm(x)).squeeze(-1).sigmoid()


def test_without_gates_the_memory_alone_is_the_output():
    mixer, x = layer(gate=False), tokens()
    targets = standardise(mixer.v_proj(mixer.v_norm(x)))
    torch.testing.assert_close(mixer(x)[0], by_hand(mixer, x, targets=targets, gates=None, loss_gates=None))
    assert not [name for name, _ in mixer.named_parameters() if "gate" in name]


@pytest.mark.parametrize("gated_loss", [True, False])
def test_the_loss_may_go_without_gates(gated_loss):
    mixer, x = layer(gated_loss=gated_loss), tokens()
    targets, gates = standardise(mixer.v_proj(mixer.v_norm(x))), gates_of(mixer, x)
    loss_gates = gates if gated_loss else None
    torch.testing.assert_close(mixer(x)[0], by_hand(mixer, x, targets=targets, gates=gates, loss_gates=loss_gates))
    assert not torch.allclose(mixer(x)[0], layer(gated_loss=not gated_loss)(x)[0])


@pytest.mark.parametrize("value_norm", ["l2", "raw"])
def test_value_norm(value_norm):
    mixer, x = layer(value_norm=value_norm), tokens()
    targets, gates = mixer.v_proj(mixer.v_norm(x)), gates_of(mixer, x)
    if value_norm == "l2":
        targets = targets / targets.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(mixer(x)[0], by_hand(mixer, x, targets=targets, gates=gates, loss_gates=gates))


def test_queries_may_be_standardised_head_by_head():
    mixer, x = layer(query_norm="standardise", heads=2), tokens()
    targets, gates = standardise(mixer.v_proj(mixer.v_norm(x))), gates_of(mixer, x)
    expected = by_hand(mixer, x, targets=targets, gates=gates, loss_gates=gates, query=standardise)
    torch.testing.assert_close(mixer(x)[0], expected)
    assert not torch.allclose(mixer(x)[0], layer(query_norm="raw", heads=2)(x)[0])


@pytest.mark.parametrize("name", ["value_norm", "query_norm", "initial_memory", "scope"])
def test_unknown_choices_of_the_layer_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'world'"):
        layer(**{name: "world"})


@torch.no_grad()
def test_one_update_after_the_whole_prompt():
    mixer, prompt, rest = layer(), tokens(time=30), tokens(time=20, seed=2)
    mixer.chunk_size = 1000
    y, state = mixer(prompt, None, True)
    assert not state.slots.numel()  # nothing is rewritten while the prompt is read
    state = mixer.finish(state)
    mixer.chunk_size = 8
    found, after = mixer(rest, state, True)
    whole = layer(chunk_size=30)
    expected_y, expected = whole(prompt, None, True)
    torch.testing.assert_close(y, expected_y)
    expected = whole.finish(expected)
    assert state.slots.equal(expected.slots)
    torch.testing.assert_close(state.rows, expected.rows)
    torch.testing.assert_close(state.keys, expected.keys)
    assert after.signature == layer().signature and after.position == 20
    assert not torch.allclose(found, layer()(rest)[0])  # the prompt is remembered


@torch.no_grad()
def test_within_a_text_the_chunk_size_stays():
    mixer, x = layer(), tokens()
    _, state = mixer(x, None, True)
    mixer.chunk_size = 16
    for call in (lambda: mixer(x, state), lambda: mixer.finish(state)):
        with pytest.raises(ValueError, match=r"read with chunk_size=8; it cannot be continued with chunk_size=16"):
            call()
    assert "chunk_size=16" in repr(mixer) and mixer.chunk_size == 16
    with pytest.raises(ValueError, match=r"lookahead must be .* less than chunk_size, got 1 and 1"):
        mixer.chunk_size = 1
    assert mixer.chunk_size == 16
    with pytest.raises(ValueError, match="made by"):  # nothing but the chunk size may differ, even between two texts
        layer(learning_rate=0.5)(x, layer().finish(state))


# ---------------------------------------------------------------------------------------------------------------------
# A memory that outlives the call


@torch.no_grad()
def test_a_persistent_memory_remembers_earlier_calls_until_it_is_reset():
    mixer, first, second = layer(scope="persistent"), tokens(seed=1), tokens(batch=3, seed=2)
    fresh = mixer(first)[0]
    assert fresh.equal(layer(scope="batch")(first)[0])
    known = mixer(first)[0]
    assert not torch.allclose(known, fresh)
    mixer.reset_memory()
    assert mixer(first)[0].equal(fresh) and mixer(first)[0].equal(known)
    found = {}
    for name, order in (("forwards", [first, second]), ("backwards", [second, first])):
        mixer.reset_memory()
        for x in order:
            found[name] = mixer(x)[0]
        found[name] = mixer(first)[0]
    assert not torch.allclose(found["forwards"], found["backwards"])


@torch.no_grad()
def test_a_persistent_memory_is_the_finished_state_of_the_last_call():
    mixer, shared = layer(scope="persistent"), layer(scope="batch")
    first, second = tokens(time=13), tokens(time=21, seed=2)
    mixer(first[:, :7])
    mixer.reset_memory()
    _, state = mixer(first[:, :7], None, True)
    mixer(first[:, 7:], state)  # a text in two calls: its state goes on, and is the one that is kept
    _, expected = shared(first, None, True)
    y, after = shared(second, shared.finish(expected), True)
    torch.testing.assert_close(mixer(second)[0], y, rtol=1e-12, atol=1e-12)
    assert mixer.kept_state.position == after.position == 21
    torch.testing.assert_close(mixer.kept_state.rows, after.rows)
    assert not any("kept" in name for name in mixer.state_dict())


def test_a_persistent_memory_keeps_no_graph_and_any_chunk_size():
    mixer, x = layer(scope="persistent"), tokens()
    mixer(x)[0].sum().backward()
    mixer(x)[0].sum().backward()
    assert not mixer.kept_state.rows.requires_grad and not mixer.kept_state.keys.requires_grad
    mixer.chunk_size = 16
    assert mixer.kept_state.position == 0
    assert mixer(x)[0].isfinite().all()


def test_the_contract_knows_of_a_persistent_memory():
    report = check_mixer("fwpkm", options={"scope": "persistent"}, only=[1, 5])
    assert "keeps memory on purpose" in report.results[1].detail
    assert not layer().keeps_memory and layer(scope="persistent").keeps_memory


# ---------------------------------------------------------------------------------------------------------------------
# What must not break it


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@torch.no_grad()
def test_input_that_is_not_finite_is_an_error_and_harms_no_memory(value):
    mixer, x = layer(scope="persistent"), tokens()
    mixer(x)
    kept, bad = mixer.kept_state, x.clone()
    bad[1, 3, 2] = value
    with pytest.raises(NotFiniteInputError, match=r"fwpkm expects finite x, got NaN or infinity in rows \[1\]") as e:
        mixer(bad)
    assert mixer.kept_state is kept and all(t.isfinite().all() for t in (kept.rows, kept.keys))
    assert classify(e.value) == "not_finite" and isinstance(e.value, ValueError)
    mixer = layer()
    _, state = mixer(x, None, True)
    before = mixer(x, state)[0]
    with pytest.raises(NotFiniteInputError):
        mixer(bad, state)
    assert mixer(x, state)[0].equal(before)


def test_large_input_is_finite():
    assert layer()(tokens().mul(1e307))[0].isfinite().all()


@torch.no_grad()
def test_the_error_names_the_layer_of_a_model():
    model = LanguageModel(preset_config("nano", "sliding_window_attention | fwpkm@1"))
    model.embedding.weight[3] = torch.nan
    with pytest.raises(NotFiniteInputError, match=r"fwpkm at layers\.1\.memory expects finite x"):
        model(torch.full((1, 5), 3))


@pytest.mark.parametrize("options", [{}, {"nonlinearity": "silu"}, {"nonlinearity": "relu"}, {"clip": 0.1}], ids=str)
@pytest.mark.parametrize("score", ["idw", "dot"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_scores_and_repeated_queries_stay_finite(options, score, backend):
    inputs = problem(time=40)
    inputs = [t.requires_grad_() for t in (torch.ones_like(inputs[0]), *inputs[1:3], 0 * inputs[3], inputs[4])]
    options = {"top_k": 4, "chunk_size": 8, "score": score, "key_objective": "both", "backend": backend} | options
    parts = solve(inputs, **options)
    gradients = torch.autograd.grad(sum(p.square().sum() for p in parts), inputs)
    assert all(t.isfinite().all() for t in (*parts, *gradients))


@pytest.mark.parametrize(("time", "chunk_size"), [(1, 1), (1, 8), (7, 8), (9, 1)])
@pytest.mark.parametrize("boundary", ["carry", "drop"])
def test_short_texts_and_short_chunks(time, chunk_size, boundary):
    mixer = layer(chunk_size=chunk_size, lookahead=min(1, chunk_size - 1), boundary=boundary)
    x = tokens(time=time).requires_grad_()
    y, state = mixer(x, None, True)
    assert y.isfinite().all() and torch.autograd.grad(y.sum(), x)[0].isfinite().all()
    assert bool(mixer.finish(state).slots.numel()) == (time > 1 or chunk_size == 1 or boundary == "drop")


@torch.no_grad()
def test_states_of_other_configurations_and_batches_are_refused(tmp_path):
    x = tokens()
    layer()(x, None, True)[1].save(tmp_path / "state.safetensors")
    state = MixerState.load(tmp_path / "state.safetensors")
    assert layer()(x, state)[0].isfinite().all()
    for other in ({"n_subkeys": 9}, {"d_v": 4}, {"heads": 2}, {"nonlinearity": "relu"}, {"clip": 1.0}, {"gate": False}):
        with pytest.raises(ValueError, match="it cannot be continued by"):
            layer(**other)(x, state)
    with pytest.raises(ValueError, match="the state holds 2 sequences but x has 3"):
        layer()(tokens(batch=3), state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer().load_state_dict(layer(n_subkeys=9).state_dict())


@torch.no_grad()
def test_a_million_tokens_through_one_state():
    torch.manual_seed(0)
    mixer = create_mixer("fwpkm", 8, n_subkeys=16, d_k=8, d_v=8, top_k=4, chunk_size=512)
    generator = torch.Generator().manual_seed(0)
    state, sizes = None, []
    while state is None or state.position < 1_000_000:
        y, state = mixer(torch.randn(1, 8192, 8, generator=generator), state, True)
        assert y.isfinite().all()
        sizes.append(state.nbytes)
    assert state.rows.isfinite().all() and state.keys.isfinite().all()
    assert state.rows.abs().max() < 100 and len(state.rows) <= 256
    assert max(sizes) <= mixer.max_state_nbytes(1) and max(sizes[-60:]) <= max(sizes[:60])


# ---------------------------------------------------------------------------------------------------------------------
# The page about it


def test_the_page_names_every_option_and_its_code_runs():
    page = (Path(__file__).parents[2] / "docs" / "fwpkm.md").read_text(encoding="utf-8")
    table = page[page.index("## Options") : page.index("## The state")]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    found = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    expected = {name: option.default for name, option in mixer_options("fwpkm").items()}
    assert {name: ast.literal_eval(default.strip(" `")) for name, default in found.items()} == expected
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names = {}
    exec(compile("\n".join(blocks[:2]), "fwpkm.md", "exec"), names)
    assert names["state"].position == 0 and names["state"].slots.numel()
    exec(compile("\n".join(blocks[2:]), "fwpkm.md", "exec"), names)
    assert len(blocks) == 4 and names["trace"]
