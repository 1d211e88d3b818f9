import dataclasses
import json
import math
import os

import pytest
import torch
from mixerzoo.mixers import MixerState
from mixerzoo.models import LanguageModel, LayoutError, ModelConfig, ModelState, counting, preset_config

LAYOUT = "toy_sum(width=4), toy_sum | toy_sum(width=3)@1 + toy_table@0"


def config(layout=LAYOUT, **changes):
    return ModelConfig(layout, **{"d_model": 32, "vocab_size": 50, **changes})


@pytest.fixture
def tokens():
    return torch.randint(50, (3, 17), generator=torch.Generator().manual_seed(0))


def test_the_layout_is_what_stands_in_the_model():
    model = LanguageModel(config())
    names = [mixer.card.name for mixer in model.mixers()]
    assert names == ["toy_sum", "toy_table", "toy_sum", "toy_sum"]
    assert [mixer.options["width"] for mixer in model.mixers()] == [4, 8, 3, 8]
    assert model.layers[0].memory is None and model.layers[1].memory is not None


def test_options_come_from_the_line_then_the_defaults_then_the_mixer():
    defaults = {"toy_sum": {"width": 5, "scale": 2.0}, "not_a_mixer": {"x": 1}}
    first, second = LanguageModel(config("toy_sum(width=4), toy_sum", mixer_defaults=defaults)).mixers()
    assert (first.options["width"], first.options["scale"]) == (4, 2.0)
    assert (second.options["width"], second.options["scale"]) == (5, 2.0)


def test_logits_of_a_sequence_do_not_depend_on_how_it_is_cut(tokens):
    model = LanguageModel(config()).double()
    whole, none = model(tokens)
    assert none is None and whole.shape == (3, 17, 50)
    state, pieces = None, []
    for piece in tokens.split([1, 5, 11], dim=1):
        logits, state = model(piece, state, return_state=True)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-10)
    assert isinstance(state, ModelState) and state.position == 17 and state.batch == 3


def test_a_state_selects_saves_and_loads_like_any_other(tokens, tmp_path):
    model = LanguageModel(config())
    _, state = model(tokens, return_state=True)
    expected = model(tokens[1:2, :1], state.select([1]))[0]
    state.save(tmp_path / "state.safetensors")
    loaded = MixerState.load(tmp_path / "state.safetensors").select([1])
    assert torch.equal(model(tokens[1:2, :1], loaded)[0], expected)
    # four mixers with a running sum each, and nothing else
    assert state.nbytes == 3 * (4 + 8 + 3 + 8) * 4


def test_states_of_other_models_are_refused_before_any_work(tokens):
    model = LanguageModel(config())
    _, state = model(tokens, return_state=True)
    other = LanguageModel(config("toy_sum(width=4), toy_sum | toy_sum(width=2)@1 + toy_table@0"))
    for module in other.mixers():
        module.register_forward_pre_hook(lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=r"was made by LanguageModel.*width=3.*cannot be continued by .*width=2"):
        other(tokens, state)
    with pytest.raises(ValueError, match="holds 3 sequences but tokens has 2"):
        model(tokens[:2], state)
    with pytest.raises(ValueError, match="expects a ModelState"):
        model(tokens, state.layers[0][1])
    # the backend changes the speed, never the state
    LanguageModel(config(mixer_defaults={"toy_sum": {"backend": "auto"}}))(tokens, state)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, dtype=torch.long), r"\[batch >= 1, time >= 1\], got \[3\]"),
        (torch.zeros(3, 0, dtype=torch.long), r"got \[3, 0\]"),
        (torch.zeros(3, 4), "int64 tokens, got torch.float32"),
        (torch.full((1, 4), 50), r"in 0\.\.49, got 50\.\.50"),
        (torch.full((1, 4), -1), r"got -1\.\.-1"),
    ],
)
def test_bad_tokens_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        LanguageModel(config())(bad)


def test_gradients_reach_every_parameter(tokens):
    model = LanguageModel(config())
    model(tokens)[0].float().logsumexp(-1).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_it_learns_a_batch_by_heart(tokens):
    model = LanguageModel(config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        logits = model(tokens[:, :-1])[0]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # at first it knows nothing, and by its tied embedding leans to the token it just read, with a logit below sqrt(64)
    assert math.log(50) < losses[0] < 8 and losses[-1] < 0.3


def test_compiled_models_give_the_same(tokens):
    model = LanguageModel(config())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens)[0], model(tokens)[0])


def test_initial_parameters_do_not_depend_on_the_default_device():
    with torch.device("meta"):
        assert all(t.is_meta for t in LanguageModel(config()).state_dict().values())
        assert torch.get_default_device().type == "meta"
    assert not any(t.is_meta for t in LanguageModel(config()).state_dict().values())


def test_autocast_and_mixers_of_another_dtype(tokens):
    expected = LanguageModel(config())(tokens)[0]
    with torch.autocast("cpu", torch.bfloat16):
        logits = LanguageModel(config())(tokens)[0]
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.02)
    logits = LanguageModel(config("toy_double | toy_double@1"))(tokens)[0]
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, LanguageModel(config("toy_sum | toy_sum@1"))(tokens)[0])


def test_greedy_generation_repeats_the_argmax_of_the_whole_sequence(tokens):
    model = LanguageModel(config())
    generated = list(model.generate(tokens, 5))
    text = tokens
    for token in generated:
        assert torch.equal(token, model(text)[0][:, -1].argmax(-1))
        text = torch.cat([text, token[:, None]], 1)
    assert text.shape == (3, 22)
    assert not any(t.requires_grad for t in generated)


def test_generation_streams_and_leaves_gradients_switched_on(tokens):
    model = LanguageModel(config())
    calls = []
    model.norm.register_forward_hook(lambda *_: calls.append(1))
    stream = model.generate(tokens, 5)
    assert not calls
    next(stream)
    assert len(calls) == 1 and torch.is_grad_enabled()
    next(stream)
    assert len(calls) == 2
    assert len(list(stream)) == 3


def test_sampling_follows_the_generator_and_top_k(tokens):
    model = LanguageModel(config())

    def draw(seed, **options):
        generator = torch.Generator().manual_seed(seed)
        return torch.stack(list(model.generate(tokens, 20, generator=generator, **options)))

    assert torch.equal(draw(1, temperature=1.0), draw(1, temperature=1.0))
    assert not torch.equal(draw(1, temperature=1.0), draw(2, temperature=1.0))
    assert torch.equal(draw(1, temperature=1.0, top_k=1), draw(0))
    first = draw(3, temperature=5.0, top_k=3)[0]
    allowed = model(tokens)[0][:, -1].topk(3).indices
    assert (first[:, None] == allowed).any(1).all()
    # the temperature divides the logits: near 0 the likeliest token is certain
    assert torch.equal(draw(4, temperature=1e-6), draw(0))


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_k": 51}],
)
def test_bad_arguments_of_generate_are_refused_at_the_call(tokens, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LanguageModel(config()).generate(tokens, **{"max_new_tokens": 3, **options})


def test_saved_models_come_back_bit_for_bit(tokens, tmp_path):
    model = LanguageModel(config(match="params", match_layout="toy_sum(width=64)"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()), std=0.1)
    model.layers[0].mixer.bfloat16()
    model.layers[0].mixer_norm.bfloat16()
    model.save(tmp_path / "a" / "b")
    loaded = LanguageModel.load(tmp_path / "a" / "b")
    assert loaded.config == model.config and loaded.d_ff == model.d_ff
    own, theirs = model.state_dict(), loaded.state_dict()
    assert list(own) == list(theirs)
    for name, tensor in own.items():
        assert theirs[name].dtype == tensor.dtype and torch.equal(theirs[name], tensor), name
    names = ["SHA256SUMS", "config.json", "model.safetensors"]
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == names


def test_loading_keeps_the_saved_width_without_counting_again(tmp_path, monkeypatch):
    model = LanguageModel(config(match="params", match_layout="toy_sum(width=64)"))
    model.save(tmp_path)
    monkeypatch.setattr(counting, "_count_parameters", lambda *_: pytest.fail("counted again"))
    assert LanguageModel.load(tmp_path).d_ff == model.d_ff != model.config.base_d_ff


def test_what_is_wrong_with_saved_files_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        LanguageModel.load(tmp_path)
    model = LanguageModel(config())
    model.save(tmp_path)
    good = (tmp_path / "config.json").read_text()

    def fails(text, error, message):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(error, match=message):
            LanguageModel.load(tmp_path)

    fails("{", ValueError, "config.json is corrupt")
    fails('{"format": 7}', ValueError, "not a model of format 2")
    fails('{"format": 2}', ValueError, "lacks the model's config")
    fails(good.replace('"n_layers"', '"n_layer"'), ValueError, "did you mean n_layers")
    fails(good.replace("toy_table", "toy_tabel"), LayoutError, "did you mean toy_table")
    fails(good.replace("width=3", "width=2"), ValueError, r"layers\.1\.memory\.down\.weight has shape \[3, 32\]")
    fails(good.replace(" | toy_sum(width=3)@1", " | toy_sum@0"), ValueError, r"memory.* is missing")
    fails(good.replace('"seed": 0', '"seed": 1'), ValueError, r"config\.json is corrupt: its SHA-256 is")
    (tmp_path / "config.json").write_text(good)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is corrupt"):
        LanguageModel.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        LanguageModel.load(tmp_path)


def test_a_flipped_bit_of_the_weights_is_noticed_and_older_models_have_no_sums(tmp_path):
    LanguageModel(config()).save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"model\.safetensors is corrupt: its SHA-256 is"):
        LanguageModel.load(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    LanguageModel.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"n_layers": 2', '"n_layers": 1000000000', "asks for 1,000,000,000 layers|at most"),
        ('"d_model": 32', '"d_model": 999999999', "does not fit|corrupt|at most"),
        ('"d_model": 32', '"d_model": 9999999999999999999', "does not fit|corrupt|at most"),
        ('"d_model": 32', '"d_model": 1e999', "too large a number"),
        ('"d_model": 32', '"d_model": NaN', "NaN is no JSON number"),
        ('"d_model": 32', f'"d_model": {"9" * 5000}', "corrupt"),
        ('"d_model": 32', f'"d_model": {"[" * 100_000}', "nested too deeply"),
        ('"mixer_defaults": {}', '"mixer_defaults": [1]', "corrupt|mapping"),
        ('"layout": "', '"layout": 7, "d_ff": "', "corrupt|layout"),
    ],
)
def test_a_hostile_configuration_is_refused_without_allocating_what_it_asks_for(old, new, message, tmp_path):
    LanguageModel(config()).save(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert old in text
    (tmp_path / "config.json").write_text(text.replace(old, new))
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=message):
        LanguageModel.load(tmp_path)


def _header(size, text):
    return size.to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",  # of a pickle
        _header(2**62, "{}"),
        _header(2**24, "{" * 100),
        _header(70, '{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}    ') + b"\0" * 4,
        _header(70, '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4398046511104]}}    ') + b"\0" * 4,
    ],
)
def test_weights_with_a_header_that_lies_are_refused(content, tmp_path):
    LanguageModel(config()).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors (is corrupt|does not fit)"):
        LanguageModel.load(tmp_path)


def test_nothing_outside_of_the_folder_is_read(tmp_path):
    model, other = tmp_path / "model", tmp_path / "other"
    for folder in (model, other):
        LanguageModel(config()).save(folder)
    sums = (model / "SHA256SUMS").read_text()
    (model / "SHA256SUMS").write_text(sums + f"{'0' * 64}  ../other/config.json\n")
    with pytest.raises(ValueError, match=r"SHA256SUMS is corrupt: a line is not"):
        LanguageModel.load(model)
    (model / "SHA256SUMS").write_text(sums)
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(other / "config.json")
    with pytest.raises(ValueError, match=r"'config\.json' leads out of"):
        LanguageModel.load(model)
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        LanguageModel.load(model)


def test_a_value_that_a_mixer_refuses_is_shown_in_the_line():
    with pytest.raises(LayoutError, match="width must be a whole number of at least 1, got 0") as caught:
        LanguageModel(config("toy_sum, toy_sum(width=0)"))
    assert caught.value.column == 17
    with pytest.raises(LayoutError, match=r"toy_sum\(widht=3\) cannot be built: .* did you mean width"):
        LanguageModel(config("toy_sum", mixer_defaults={"toy_sum": {"widht": 3}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, r"d_model must be a whole number of at least 1 .*got 0"),
        ({"n_layers": 2.0}, "n_layers must be a whole number"),
        ({"d_ff": -1}, "d_ff must be"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"match": "bytes", "match_layout": "toy_sum"}, "match must be"),
        ({"match": "params"}, "go together"),
        ({"match_layout": "toy_sum"}, "go together"),
        ({"mixer_defaults": {"toy_sum": 3}}, r"mixer_defaults\['toy_sum'\] must be a mapping"),
        ({"layout": "a b"}, "found 'b'"),
        ({"match": "params", "match_layout": "a b"}, "found 'b'"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"layout": "toy_sum", **changes})


def test_configs_are_plain_data():
    full = config(mixer_defaults={"toy_sum": {"width": 3}}, match="params", match_layout="toy_sum", d_ff=8)
    assert ModelConfig.from_dict(json.loads(json.dumps(full.to_dict()))) == full
    with pytest.raises(ValueError, match="no setting 'dmodel'; did you mean d_model"):
        ModelConfig.from_dict({"layout": "toy_sum", "dmodel": 3})
    with pytest.raises(ValueError, match="needs a layout"):
        ModelConfig.from_dict({})


def test_the_default_width_is_eight_thirds():
    assert config(d_model=768).base_d_ff == 2048
    assert config(d_model=64).base_d_ff == 192
    assert config(d_ff=5).base_d_ff == 5


def test_preset_config_merges_options():
    nano = preset_config("nano", "fwpkm", seed=3, mixer_defaults={"fwpkm": {"top_k": 4}})
    assert (nano.d_model, nano.n_layers, nano.vocab_size, nano.seed) == (64, 2, 512, 3)
    assert nano.mixer_defaults["fwpkm"] == {**preset_config("nano", "fwpkm").mixer_defaults["fwpkm"], "top_k": 4}
    assert preset_config("nano", "fwpkm").mixer_defaults["fwpkm"]["top_k"] == 8
    with pytest.raises(ValueError, match="unknown preset 'nanno'; did you mean nano"):
        preset_config("nanno", "toy_sum")
    with pytest.raises(ValueError, match="no setting 'd_modle'"):
        preset_config("nano", "toy_sum", d_modle=3)
    assert dataclasses.replace(nano, seed=0).seed == 0
