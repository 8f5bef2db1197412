"""What is written can be parsed back; the parser says where a text went wrong; the grammar admits exactly the grids."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tasks.base import UserError, as_grid
from tasks.text import Grammar, ParseError, parse, write

small_grids = arrays(np.int8, array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.integers(0, 15))
grids = arrays(np.int8, array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.integers(0, 15))
json_like = st.text(alphabet="[]0123456789, -.e\n", max_size=40)


@st.composite
def damaged(draw):
    """The text of a grid with some characters removed, doubled or replaced."""
    text = list(write(draw(small_grids)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text) - 1))
        text[at] = draw(st.sampled_from(["", text[at] * 2, *"[],019- "]))
    return "".join(text)


@given(grids)
@settings(max_examples=60, deadline=None)
def test_there_and_back(grid):
    text = write(grid)
    assert text == json.dumps(grid.tolist(), separators=(",", ":"))
    assert np.array_equal(parse(text), grid) and parse(text).dtype == np.int8


@given(small_grids)
def test_white_space_of_json_is_allowed(grid):
    assert np.array_equal(parse(f"\n {json.dumps(grid.tolist(), indent=2)}\t\r\n"), grid)


def by_json(text):
    """A second opinion: Python's JSON reader and the check of every grid. None for what is no grid."""
    try:
        return as_grid(json.loads(text)) if "-" not in text else None  # JSON has a minus zero, grids have not
    except (ValueError, UserError):
        return None


@given(st.one_of(json_like, damaged(), st.text(max_size=30)))
@settings(max_examples=250, deadline=None)
def test_agrees_with_json_and_never_crashes(text):
    expected = by_json(text)
    try:
        found = parse(text)
    except ParseError as error:
        assert expected is None
        assert 0 <= error.position <= len(text) and error.line >= 1 and error.column >= 1
        assert text.split("\n")[error.line - 1][: error.column - 1] == text[: error.position].rpartition("\n")[2]
        assert f"(line {error.line}, column {error.column})" in str(error) and "\n" not in str(error)
    else:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("", 0, "expected an opening bracket, found the end of the text"),
        ("The answer is [[1]]", 0, "found 'T'"),
        ("[]", 1, "opening bracket of a row"),
        ("[[]]", 2, "expected a number, found ']'"),
        ("[[1,2],[3]]", 7, "row 2 has 1 values, row 1 has 2"),
        ("[[1,2", 5, "comma or a closing bracket, found the end"),
        ("[[1,2],", 7, "found the end"),
        ("[[1,2]", 6, "comma or a closing bracket"),
        ("[[1,]]", 4, "expected a number"),
        ("[[1 2]]", 4, "comma"),
        ("[[1]] [[2]]", 6, "after the end of the grid"),
        ("[[16]]", 2, "16 is too large"),
        ("[[" + "9" * 10000 + "]]", 2, "999999999... is too large"),
        ("[[-1]]", 2, "-1 is not one of the whole numbers 0 to 15"),
        ("[[1.0]]", 2, "1.0 is not one of the whole numbers"),
        ("[[1e1]]", 2, "not one of the whole numbers"),
        ("[[01]]", 2, "leading zero"),
        ("[[[1]]]", 2, "found '['"),
        ("[" * 100_000, 2, "found '['"),
        ('[["1"]]', 2, "expected a number"),
        ("[[٣]]", 2, "expected a number"),
        ("[[1],\n [2],\n [x]]", 14, "(line 3, column 3)"),
        ("[" + ",".join(["[0]"] * 31) + "]", 121, "more than 30 rows"),
        ("[[" + ",".join("0" * 31) + "]]", 62, "more than 30 values"),
    ],
)
def test_says_where_it_went_wrong(text, position, says):
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert caught.value.position == position and says in str(caught.value)
    assert len(str(caught.value)) < 120


# --- the grammar -------------------------------------------------------------------------------------------------


@given(grids)
@settings(max_examples=30, deadline=None)
def test_the_grammar_admits_every_written_grid(grid):
    text = write(grid)
    grammar = Grammar()
    assert grammar.admits(text) and grammar.before == ""
    for character in text:
        assert not grammar.done
        grammar.advance(character)
    assert grammar.done and grammar.allowed() == set()


@given(st.one_of(damaged(), json_like, small_grids.map(write)))
@settings(max_examples=200, deadline=None)
def test_the_grammar_admits_nothing_else(text):
    try:
        written = write(parse(text)) == text
    except ParseError:
        written = False
    grammar = Grammar()
    complete = grammar.admits(text) and Grammar(text).done
    assert complete == written


@pytest.mark.parametrize("seed", range(20))
def test_any_walk_through_the_grammar_ends_in_a_grid(seed):
    """No dead ends: a random choice, and later closing as soon as possible, always completes a grid."""
    rng = random.Random(seed)
    grammar, text = Grammar(), ""
    while not grammar.done:
        allowed = sorted(grammar.allowed())
        assert allowed
        close = len(text) > 200 * (seed % 5) and "]" in allowed
        character = "]" if close else rng.choice(allowed)
        grammar.advance(character)
        text += character
        assert len(text) < 3000
    assert write(parse(text)) == text


def test_the_grammar_at_its_limits():
    row = "[" + ",".join("0" * 30) + "]"
    assert Grammar("[" + row[:-1]).allowed() == {"]"}
    assert Grammar("[" + ",".join([row] * 30)).allowed() == {"]"}
    assert Grammar("[" + ",".join([row] * 29)).allowed() == {"]", ","}
    assert Grammar("[[1").allowed() == set("012345,]")
    assert Grammar("[[11").allowed() == set(",]")
    assert Grammar("[[2").allowed() == set(",]")
    assert Grammar("[[0,1],[2").allowed() == {","}
    assert Grammar("[[0,1],[2,1").allowed() == set("012345]")


def test_a_refused_character_changes_nothing():
    grammar = Grammar("[[1,2],[3")
    before = dict(grammar.__dict__)
    with pytest.raises(UserError):
        grammar.advance("]")
    assert grammar.__dict__ == before
    assert not grammar.admits("]") and grammar.admits(",4]]") and not grammar.admits(",4]]]")
    twin = grammar.copy()
    twin.advance(",")
    assert grammar.__dict__ == before
