"""A decoder gives what calling the model token by token gives, whatever the mixer, and says how."""

from __future__ import annotations

import pytest
import torch
from mixerzoo.mixers import list_mixers, mixer_card, small_options
from mixerzoo.mixers.interface import NotFiniteInputError
from mixerzoo.mixers.ops.dispatch import record_backends
from mixerzoo.mixers.softmax import stepping
from mixerzoo.mixers.state import held_tensors
from mixerzoo.models import LanguageModel, ModelConfig
from mixerzoo.models.decoder import Decoder
from mixerzoo.models.language_model import RECORDING_PAYS
from mixerzoo.models.program import CannotRecordError, record
from torch.utils._python_dispatch import TorchDispatchMode

D_MODEL, VOCAB = 32, 29
RECORDED, AT_EDGES = "recorded", "recorded, called at edges"
PROMPT, NEW, ROOM = 21, 45, 70  # 45 tokens pass two edges of chunks of 16, and windows of 16 fill up


# What is recorded is pinned down, so that no mixer falls back to being called unnoticed.
CALLED = {
    "deltaformer": "its mix is not that of KeyValueAttention",
    "fwmlp": "its state grows with the text",
    "hyena": "its state grows with the text",
    "lact": "its state grows with the text",
    "log_linear_attention": "aten.is_nonzero.default looks at what a tensor holds",
    "mesa": "aten.is_nonzero.default looks at what a tensor holds",
    "mixture_of_memories": "aten.item.default looks at what a tensor holds",
    "moba": "its mix is not that of KeyValueAttention",
    "native_sparse_attention": "its state grows with the text",
    "path_attention": "its state grows with the text",
    "stick_breaking_attention": "its state grows with the text",
}
WITH_EDGES = ("fwpkm", "titans", "ttt_linear", "ttt_mlp")


def build(layout, n_layers=1, **options):
    options = {name: small_options(name) for name in list_mixers()} | options
    config = ModelConfig(layout, d_model=D_MODEL, n_layers=n_layers, vocab_size=VOCAB, mixer_defaults=options)
    return LanguageModel(config).eval().double()


def layout_of(name):
    return f"identity | {name}@0" if mixer_card(name).role == "feed_forward" else name


def tokens(batch=2, time=NEW, seed=0):
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def one_by_one(model, state, following):
    """Logits after each token, and the last state, by the model itself."""
    found = []
    for token in following.unbind(1):
        logits, state = model(token[:, None], state, return_state=True)
        found.append(logits[:, -1])
    return torch.stack(found, 1), state


def steps(decoder, following):
    return torch.stack([decoder.step(token) for token in following.unbind(1)], 1)


def assert_equal_states(model, a, b):
    """Two states are one if the model goes on from both alike, and they hold as much."""
    assert a.position == b.position
    following = tokens(a.batch, 18, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(model(following, a)[0], model(following, b)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list_mixers())
def test_every_mixer_decodes_as_it_is_called(name):
    model, prompt, following = build(layout_of(name)), tokens(time=PROMPT), tokens(seed=1)
    with torch.no_grad():
        logits, prefilled = model(prompt, return_state=True)
    expected, after = one_by_one(model, prefilled, following)
    decoder = model.decoder(2, ROOM)
    torch.testing.assert_close(decoder.prefill(prompt), logits[:, -1], rtol=1e-9, atol=1e-9)
    middle = NEW // 2
    first = steps(decoder, following[:, :middle])
    taken = decoder.state
    torch.testing.assert_close(first, expected[:, :middle], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(steps(decoder, following[:, middle:]), expected[:, middle:], rtol=1e-9, atol=1e-9)
    assert_equal_states(model, decoder.state, after)
    # from a state in the middle, which going on has not changed
    other = model.decoder(2, ROOM)
    other.state = taken
    torch.testing.assert_close(steps(other, following[:, middle:]), expected[:, middle:], rtol=1e-9, atol=1e-9)
    assert decoder.position == PROMPT + NEW
    place = "layers.0.feed_forward" if name == "pkm" else "layers.0.mixer"
    expected_how = f"called: {CALLED[name]}" if name in CALLED else AT_EDGES if name in WITH_EDGES else RECORDED
    assert decoder.how[place] == expected_how


RECORDABLE = "softmax_attention, sliding_window_attention, ttt_linear, gated_deltanet | fwpkm@1,3"
MIXED = RECORDABLE.replace("softmax_attention,", "softmax_attention, stick_breaking_attention,", 1)


class FakeGraphs:
    """Runs on a CPU what a CUDA graph would repeat, with the same rules: nothing happens before the first replay, and
    results lie where they lay at the capture."""

    def __init__(self, fails=False):
        self.captures = self.replays = 0
        self.fails = fails

    def capture(self, step, commit):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand so on")
        self.captures += 1
        return FakeReplay(self, step, commit)


class FakeReplay:
    def __init__(self, graphs, step, commit):
        self.graphs, self.step, self.commit = graphs, step, commit
        step()  # a warm-up
        self.outputs = [t.clone() for t in step()]

    def replay(self):
        self.graphs.replays += 1
        new = self.step()
        for own, t in zip(self.outputs, new):
            own.copy_(t)
        self.commit(new)


def decode(decoder, prompt, following):
    decoder.state = None
    decoder.prefill(prompt)
    return steps(decoder, following)


def test_graphs_repeat_the_recorded_step_at_fixed_addresses():
    model, prompt, following = build(RECORDABLE, 4), tokens(time=5), tokens(time=40, seed=1)
    with torch.no_grad():
        expected, after = one_by_one(model, model(prompt, return_state=True)[1], following)
    graphs = FakeGraphs()
    decoder = Decoder(model, 2, 300, graphs=graphs)
    for _ in range(2):  # the second text finds the graphs of the first
        torch.testing.assert_close(decode(decoder, prompt, following), expected, rtol=1e-9, atol=1e-9)
        assert_equal_states(model, decoder.state, after)
    edges = sum((position + 1) % 8 == 0 for position in range(5, 45))  # of ttt_linear, among them those of fwpkm
    assert graphs.replays == 2 * (40 - edges)
    assert graphs.captures <= 3  # one, and one more whenever the rows of a memory had to move
    assert set(decoder.how.values()) == {RECORDED, AT_EDGES}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("softmax_attention", {"kv_heads": 1, "sinks": True, "conv_size": 3, "logit_scale": "log"}),
        ("forgetting_attention", {"kv_heads": 1}),
        ("differential_attention", {}),
        ("multi_head_latent_attention", {}),
    ],
)
def test_a_graph_sees_a_power_of_two_of_a_cache(name, options, monkeypatch):
    monkeypatch.setattr(stepping, "SMALLEST_BUCKET", 8)
    model = build(name, **{name: small_options(name) | {"heads": 2} | options})
    prompt, following = tokens(time=5), tokens(time=30, seed=1)
    with torch.no_grad():
        expected, _ = one_by_one(model, model(prompt, return_state=True)[1], following)
    graphs = FakeGraphs()
    decoder = Decoder(model, 2, 40, graphs=graphs)
    for _ in range(2):  # the second text finds what the first has left in the buffers
        torch.testing.assert_close(decode(decoder, prompt, following), expected, rtol=1e-9, atol=1e-9)
    assert graphs.captures == 4  # of 8, 16, 32 and 40 places


def test_without_a_graph_the_recorded_step_runs_and_says_why():
    model, prompt, following = build("softmax_attention"), tokens(time=5), tokens(time=6, seed=1)
    with torch.no_grad():
        expected, _ = one_by_one(model, model(prompt, return_state=True)[1], following)
    decoder = Decoder(model, 2, 40, graphs=FakeGraphs(fails=True))
    torch.testing.assert_close(decode(decoder, prompt, following), expected, rtol=1e-9, atol=1e-9)
    assert decoder.how == {
        "layers.0.mixer": "recorded, without a graph: operation not permitted when stream is capturing"
    }


def test_mixers_that_must_be_called_stand_between_recordings():
    model, prompt, following = build(MIXED, 5), tokens(time=7), tokens(time=30, seed=1)
    with torch.no_grad():
        expected, after = one_by_one(model, model(prompt, return_state=True)[1], following)
    decoder = model.decoder(2, ROOM)
    torch.testing.assert_close(decode(decoder, prompt, following), expected, rtol=1e-9, atol=1e-9)
    assert_equal_states(model, decoder.state, after)
    assert decoder.how["layers.1.mixer"] == "called: its state grows with the text"
    assert [how for how in decoder.how.values() if how.startswith("called")] == [decoder.how["layers.1.mixer"]]


def test_a_state_is_neither_changed_nor_shared():
    model, following = build(MIXED, 5), tokens(time=30, seed=1)
    with torch.no_grad():
        state = model(tokens(time=20), return_state=True)[1]
    before = [t.clone() for t in values_of(state)]
    decoder = model.decoder(2, ROOM)
    decoder.state = state
    steps(decoder, following[:, :10])
    taken = decoder.state
    held = [t.clone() for t in values_of(taken)]
    steps(decoder, following[:, 10:])
    for now, then in ((state, before), (taken, held)):
        assert all(torch.equal(a, b) for a, b in zip(values_of(now), then, strict=True))
    assert not any(t.is_inference() for t in held_tensors(taken))  # gradients may flow from it
    model(following, taken)[0].sum().backward()


def values_of(state):
    """What a state holds, without the spare room of its buffers, which may be written to."""
    found = []
    state.map_tensors(lambda t: found.append(t) or t)
    return found


def test_what_does_not_fit_is_refused():
    model = build("softmax_attention | fwpkm@0")
    for batch, max_length in ((0, 5), (1, 0)):
        with pytest.raises(ValueError, match="batch >= 1 and max_length >= 1"):
            model.decoder(batch, max_length)
    with pytest.raises(ValueError, match=r"dtype must be one for autocast.*torch.int64"):
        model.decoder(1, 5, dtype=torch.int64)
    decoder = model.decoder(2, 6)
    with pytest.raises(ValueError, match="max_length = 6 tokens; 7 more do not fit after 0"):
        decoder.prefill(tokens(2, 7))
    decoder.prefill(tokens(2, 4))
    for token in (tokens(2, 1), tokens(1, 2)[0].int(), tokens(1, 3)[0]):
        with pytest.raises(ValueError, match=r"a step takes int64 tokens \[2\]"):
            decoder.step(token)
    with pytest.raises(ValueError, match=r"token ids must be in 0..28"):
        decoder.step(torch.tensor([3, VOCAB]))
    assert decoder.position == 4
    decoder.step(tokens(1, 2)[0])
    decoder.prefill(tokens(2, 1))
    with pytest.raises(ValueError, match="1 more do not fit after 6"):
        decoder.step(tokens(1, 2)[0])
    with torch.no_grad():
        states = [model(tokens(batch, time), return_state=True)[1] for batch, time in ((3, 2), (2, 7))]
        states.append(build("mamba2")(tokens(2, 3), return_state=True)[1])
    for state, message in zip(states, ("for 2 sequences.*holds 3", "beyond max_length = 6", "cannot be continued by")):
        with pytest.raises(ValueError, match=message):
            decoder.state = state


def test_the_first_step_may_be_the_first_token():
    model, following = build("gated_deltanet"), tokens(time=4)
    decoder = model.decoder(2, 8)
    assert decoder.state is None
    with torch.no_grad():
        torch.testing.assert_close(steps(decoder, following), model(following)[0])


def test_changed_weights_count_from_the_next_prefill_on():
    model, prompt, following = build("gated_deltanet"), tokens(time=4), tokens(time=5, seed=1)
    decoder = model.decoder(2, 80)
    decode(decoder, prompt, following)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        expected, _ = one_by_one(model, model(prompt, return_state=True)[1], following)
    torch.testing.assert_close(decode(decoder, prompt, following), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["softmax_attention", "fwpkm"])
def test_a_mixer_that_mixes_in_a_way_of_its_own_is_called(name):
    model, following = build(name), tokens(time=9)
    mixer = model.layers[0].mixer

    class Doubling(type(mixer)):
        def mix(self, x, state, return_state):
            y, state = super().mix(x, state, return_state)
            return 2 * y, state

    mixer.__class__ = Doubling
    with torch.no_grad():
        expected = model(following)[0]
    decoder = model.decoder(2, 9)
    torch.testing.assert_close(steps(decoder, following), expected, rtol=1e-9, atol=1e-9)
    assert decoder.how["layers.0.mixer"].startswith("called: its mix is not that of")


def test_who_asks_which_kernels_run_changes_nothing():
    model, following = build("softmax_attention, gated_deltanet | fwpkm@0", 2), tokens(time=3)
    with record_backends() as ran:
        decoder = model.decoder(2, 9)
        steps(decoder, following)
    assert set(decoder.how.values()) == {RECORDED, AT_EDGES}
    assert ran["recurrence"] and ran["attention"]


def test_a_hook_is_called_for_every_token():
    model, seen = build("gated_deltanet"), []
    model.layers[0].mixer.register_forward_hook(lambda *_: seen.append(1))
    steps(model.decoder(2, 9), tokens(time=9))
    assert len(seen) == 9


def test_a_memory_says_that_its_input_is_not_finite():
    model = build("fwpkm").float()
    decoder = model.decoder(1, 40)
    steps(decoder, tokens(1, 5))
    with torch.no_grad():
        model.embedding.weight[7] = torch.nan
    with pytest.raises(NotFiniteInputError, match=r"fwpkm at layers.0.mixer expects finite x"):
        steps(decoder, torch.full((1, 16), 7))


class CountsCasts(TorchDispatchMode):
    """Counts the casts of a model's weights."""

    def __init__(self, model):
        super().__init__()
        self.weights, self.casts, self.calls = {t.data_ptr() for t in model.parameters()}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to):
            before = args[0].data_ptr() in self.weights and args[0].dtype
            result = func(*args, **(kwargs or {}))
            self.casts += bool(before) and result.dtype != before
            return result
        return func(*args, **(kwargs or {}))


# the last two must be called
@pytest.mark.parametrize("layout", ["softmax_attention, gated_deltanet | fwpkm@1", "stick_breaking_attention, moba"])
def test_low_precision_casts_no_weight_for_a_token(layout):
    model = build(layout, 2).float()
    prompt, following = tokens(time=3), tokens(time=10, seed=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, _ = one_by_one(model, model(prompt, return_state=True)[1], following)
    decoder = model.decoder(2, 40, dtype=torch.bfloat16)
    torch.testing.assert_close(decode(decoder, prompt, following), expected, rtol=2e-3, atol=2e-3)
    with CountsCasts(model) as decoded:
        logits = decoder.step(tokens(1, 2)[0])
    assert logits.dtype == torch.bfloat16 and decoded.calls
    assert decoded.casts == 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), CountsCasts(model) as called:
        model(tokens(2, 1), decoder.state)
    assert called.casts > 10  # what the count would find


def test_the_autocast_of_a_caller_changes_nothing():
    model, following = build("softmax_attention | fwpkm@0").float(), tokens(time=20)
    expected = steps(model.decoder(2, 20), following)
    with torch.autocast("cpu", torch.bfloat16):
        found = steps(model.decoder(2, 20), following)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("lengths", [None, [4, 9]])
def test_generating_many_tokens_gives_those_of_the_model(lengths):
    model, prompt = build(MIXED, 5), tokens(time=9)
    generated = torch.stack(list(model.generate(prompt, RECORDING_PAYS + 8, lengths=lengths)), 1)
    for row, own, length in zip(generated, prompt, lengths or [9, 9]):
        text = torch.cat([own[-length:], row])[None]
        with torch.no_grad():
            assert torch.equal(model(text)[0].argmax(-1)[0, length - 1 : -1], row)


# The recording itself


def test_a_recording_repeats_only_what_depends_on_its_inputs():
    weight, seen = torch.nn.Linear(4, 3), []

    def function(inputs):
        seen.append(1)
        x, buffer = inputs
        scale = weight.weight.double().exp().sum()  # of parameters alone: worked out once
        x.sin()  # which nobody uses
        buffer.add_(1)  # in place
        table = torch.zeros(2)
        table[0] = x.sum()  # a constant that is written to later is made anew each time
        return [weight(x) * scale.float() + table.sum(), x.split(2, -1)[1]]

    x, buffer = torch.randn(2, 4), torch.zeros(1)
    run = record(function, [x, buffer])
    recorded, buffer = len(seen), torch.zeros(1)
    with torch.inference_mode():
        for _ in range(3):
            found = run(x * 2, buffer)
    assert len(seen) == recorded and buffer == 3
    expected = function([x * 2, buffer])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * x.sum().item(), "looks at what a tensor holds"),
        (lambda x: x if x.sum() > 0 else -x, "looks at what a tensor holds"),
        (lambda x: torch.arange(x.sum().long()), "looks at what a tensor holds"),
        (lambda x: x[x > 0], "the size of what"),
        (lambda x: x.unique(), "the size of what"),
        (lambda x: torch.nn.functional.dropout(x, 0.5), "draws random numbers"),
        (lambda x: OUTSIDE.add_(x.sum()), "writes to a tensor that outlives the call"),
    ],
)
def test_what_would_not_hold_for_other_inputs_is_not_recorded(function, message):
    with pytest.raises(CannotRecordError, match=message):
        record(lambda inputs: [function(inputs[0])], [torch.randn(4)])


OUTSIDE = torch.zeros(1)
