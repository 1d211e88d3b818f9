import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mixerzoo.models import LAYOUTS, Layout, LayoutError, parse_layout
from mixerzoo.models.layout import Insertion, MixerSpec, Repeated

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
values = st.one_of(
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.booleans(),
    st.none(),
)
mixers = st.builds(MixerSpec, names, st.dictionaries(names, values, max_size=3))
layouts = st.builds(
    Layout,
    st.lists(st.builds(Repeated, mixers, st.integers(1, 99)), min_size=1, max_size=3).map(tuple),
    st.lists(
        st.builds(Insertion, mixers, st.lists(st.integers(0, 99), min_size=1, max_size=3).map(tuple)), max_size=3
    ).map(tuple),
)


@given(layouts)
def test_the_canonical_line_parses_to_the_same_layout(layout):
    assume(str(layout) not in LAYOUTS)
    parsed = parse_layout(str(layout))
    assert parsed == layout
    assert str(parsed) == str(layout)


@given(st.text("ab1(),=|@+*.'\" -", max_size=20))
def test_any_other_line_gives_a_layout_or_a_layout_error_that_points_into_it(line):
    try:
        parsed = parse_layout(line)
    except LayoutError as error:
        assert 0 <= error.column <= len(line)
        shown, caret = str(error).splitlines()[-2:]
        assert shown == f"  {line}" and caret.index("^") == error.column + 2
    else:
        assert parse_layout(str(parsed)) == parsed


def test_a_line_with_everything():
    layout = parse_layout("a(window=512, act=elu)*3 , b |c(n=32, t=1e-2, on=true, x=None, s='q r')@2,10+ d@6")
    assert layout.pattern == (
        Repeated(MixerSpec("a", {"window": 512, "act": "elu"}), 3),
        Repeated(MixerSpec("b"), 1),
    )
    options = {"n": 32, "t": 0.01, "on": True, "x": None, "s": "q r"}
    assert layout.insertions == (Insertion(MixerSpec("c", options), (2, 10)), Insertion(MixerSpec("d"), (6,)))
    assert isinstance(layout.insertions[0].mixer.options["n"], int)
    expected = "a(window=512, act='elu')*3, b | c(n=32, t=0.01, on=True, x=None, s='q r')@2,10 + d@6"
    assert str(layout) == expected


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("", 0, "expected a name, found the end"),
        ("a,", 2, "expected a name, found the end"),
        ("a, |", 3, "expected a name, found '|'"),
        ("a**2", 2, "expected a whole number, found '*'"),
        ("a*0", 2, "at least once"),
        ("a(w 3)", 4, "expected '=', found '3'"),
        ("a(w=)", 4, "expected a name or a number or a quoted string, found ')'"),
        ("a(w=3", 5, "expected ')' or ',', found the end"),
        ("a(w=3, w=4)", 7, "'w' is given twice"),
        ("a(w=$)", 4, "expected a name or a number or a quoted string, found '$'"),
        ("a(w=1e999)", 4, "too large"),
        ("a(w='\\x')", 4, "cannot be read"),
        ("a | b", 5, "expected '@', found the end"),
        ("a | b@", 6, "expected a whole number, found the end"),
        ("a | b@-1", 6, "expected a whole number, found '-1'"),
        ("a | b@1 c", 8, "expected '+' or ',' or the end, found 'c'"),
        ("a\n  )", 4, "found ')'"),
    ],
)
def test_errors_point_at_the_character_and_say_what_was_expected(line, column, message):
    with pytest.raises(LayoutError) as caught:
        parse_layout(line)
    assert message in str(caught.value)
    shown, caret = str(caught.value).splitlines()[-2:]
    assert shown[2:] == line.replace("\n", " ")
    assert caret == "  " + " " * column + "^"


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        ("!toy_sun", "unknown mixer 'toy_sun'; did you mean toy_sum"),
        ("toy_sum | !toy_tabel@0", "did you mean toy_table"),
        ("toy_sum(scale=2, !widht=3)", "did you mean width"),
        ("sliding_window_attention(heads=2, !window=0)", "window must be a whole number of at least 1, got 0"),
        ("softmax_attention(!positions='none', heads=2)", "positions must be one of rope, nope"),
        ("toy_sum | fwpkm(top_k=4, !chunk_size='long')@1", "chunk_size must be a whole number"),
        ("toy_sum | toy_sum@0,!4", "the model's layers are 0 to 3"),
        ("toy_sum | toy_sum@0,!0", "layer 0 already has a memory sublayer, toy_sum"),
        ("toy_sum | toy_sum@1 + toy_double@2,!1", "layer 1 already has a memory sublayer"),
        ("toy_sum | toy_table@1,!1", "layer 1 already has a feed-forward"),
        ("toy_sum*2, !toy_table", "insert it right of '|'"),
        ("toy_sum*3, toy_double*!2", "has 5 layers, the model has 4"),
        ("toy_sum*3, toy_double, !toy_sum", "has 5 layers"),
    ],
)
def test_errors_of_meaning_point_at_the_character_too(marked, message):
    with pytest.raises(LayoutError) as caught:
        parse_layout(marked.replace("!", "")).place(4)
    assert message in str(caught.value)
    assert caught.value.column == marked.index("!")


def test_the_pattern_is_tiled_and_insertions_go_by_role():
    layers = parse_layout("toy_sum*2, toy_double | toy_sum@1 + toy_table@1,4").place(5)
    assert [layer.mixer.name for layer in layers] == ["toy_sum", "toy_sum", "toy_double", "toy_sum", "toy_sum"]
    assert [layer.memory is not None for layer in layers] == [False, True, False, False, False]
    assert [layer.feed_forward is not None for layer in layers] == [False, True, False, False, True]


def test_numbers_stay_exact():
    options = parse_layout("a(x=-0.1, y=.5, z=1e22, w=-7)").pattern[0].mixer.options
    assert options == {"x": -0.1, "y": 0.5, "z": 1e22, "w": -7}
    assert math.copysign(1, options["x"]) == -1
