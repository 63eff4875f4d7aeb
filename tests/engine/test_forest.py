"""The layout of a batch, against brute force over random tries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptune.engine.forest import Forest, pad, plant, portions
from heptune.tasks.example import Example


def example(tokens: list[int], supervised: list[int], record: int = 0) -> Example:
    return Example(tuple(tokens), tuple(t in supervised for t in range(len(tokens))), record)


@st.composite
def examples(draw: st.DrawFn, least: int = 1) -> list[Example]:
    """Examples over three tokens, so that leads are often shared, equal, or prefixes of one another."""
    count = draw(st.integers(least, 7))
    made = []
    for record in range(count):
        tokens = draw(st.lists(st.integers(0, 2), min_size=2, max_size=9))
        places = draw(st.sets(st.integers(1, len(tokens) - 1), min_size=1))
        made.append(example(tokens, sorted(places), record))
    return made


def last(e: Example) -> int:
    """Rows of an example alone: what stands before its last target."""
    return max(t for t, s in enumerate(e.supervised) if s)


def rows_of(forest: Forest, row: int) -> list[int]:
    """The rows that a row sees."""
    return [k for k in range(row + 1) if row < forest.end[k]]


def read_back(forest: Forest, index: int, e: Example) -> list[int]:
    """The rows of an example, found from the row of its last target; checks tokens and positions on the way."""
    own = np.flatnonzero(forest.target_example == index)
    deepest = int(max(forest.target_row[own], key=lambda row: forest.position[row]))
    path = rows_of(forest, deepest)
    assert forest.token[path].tolist() == list(e.tokens[: last(e)])
    assert forest.position[path].tolist() == list(range(last(e)))
    got = {(int(forest.position[forest.target_row[j]]) + 1, int(forest.target_token[j])) for j in own}
    assert got == {(t, e.tokens[t]) for t, s in enumerate(e.supervised) if s}
    assert all(forest.target_row[j] in path for j in own)
    return path


@given(examples(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_visibility_is_ancestor_or_self_in_one_example(batch: list[Example], share: bool) -> None:
    forest = plant(batch, share)
    paths = [read_back(forest, i, e) for i, e in enumerate(batch)]
    assert set(itertools.chain(*paths)) == set(range(forest.rows)), "every row belongs to an example"
    for q, k in itertools.product(range(forest.rows), repeat=2):
        ancestor = any(q in path and k in path and path.index(k) <= path.index(q) for path in paths)
        assert ancestor == (k <= q < forest.end[k]), (q, k)


@given(examples())
@settings(max_examples=100, deadline=None)
def test_rows_are_those_of_the_trie(batch: list[Example]) -> None:
    """Shared: one row for each distinct leading path, and each example's rows behind its lead. Unshared: all rows."""
    leads = {e.tokens[:n] for e in batch for n in range(1, e.lead + 1)}
    assert plant(batch).rows == len(leads) + sum(last(e) - e.lead for e in batch)
    assert plant(batch, share=False).rows == sum(last(e) for e in batch)


@given(examples(), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_examples_does_not_matter(batch: list[Example], shuffle: object) -> None:
    def content(order: list[Example]) -> tuple[list[int], list[tuple[int, int, int]]]:
        forest = plant(order)
        targets = zip(forest.target_row, forest.target_token, forest.target_example, strict=True)
        depth = [(int(forest.position[r]), int(t), order[i].record) for r, t, i in targets]
        return sorted(forest.position.tolist()), sorted(depth)

    other = list(batch)
    shuffle.shuffle(other)  # type: ignore[attr-defined]
    assert content(batch) == content(other)


@given(examples(), st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_portions_cover_all_and_respect_the_budget(batch: list[Example], budget: int) -> None:
    parts = list(portions(batch, budget))
    assert sorted(e.record for part in parts for e in part) == [e.record for e in batch]
    for part in parts:
        assert plant(part).rows <= budget or len(part) == 1
    sizes = [plant(part).rows for part in parts]
    following = [part[0] for part in parts[1:]]
    for size, part, e in zip(sizes, parts, following, strict=False):
        assert plant([*part, e]).rows > budget, f"{size} rows: the next example would have fitted"


@given(examples())
@settings(max_examples=50, deadline=None)
def test_padding_holds_the_same_targets(batch: list[Example]) -> None:
    padded = pad(batch)
    width = max(last(e) for e in batch)
    assert padded.token.shape == padded.mask.shape == (len(batch), width) and padded.rows == len(batch) * width
    for i, e in enumerate(batch):
        assert padded.mask[i].tolist() == [1] * last(e) + [0] * (width - last(e))
        assert padded.token[i, : last(e)].tolist() == list(e.tokens[: last(e)])
    targets = zip(padded.target_row, padded.target_token, padded.target_example, strict=True)
    want = [(i * width + t - 1, e.tokens[t], i) for i, e in enumerate(batch) for t, s in enumerate(e.supervised) if s]
    assert [tuple(map(int, target)) for target in targets] == want


def test_the_docstrings_example() -> None:
    instruction, a, b, y, c, z = 10, 1, 2, 8, 3, 9
    forest = plant([example([instruction, instruction, a, b, y], [4]), example([instruction, instruction, c, z], [3])])
    assert forest.token.tolist() == [instruction, instruction, a, b, c]
    assert forest.position.tolist() == [0, 1, 2, 3, 2]
    assert forest.end.tolist() == [5, 5, 4, 4, 5]
    assert forest.target_row.tolist() == [3, 4] and forest.target_token.tolist() == [y, z]


def test_one_row_predicts_the_different_answers_of_equal_prompts() -> None:
    forest = plant([example([5, 6, 7], [2]), example([5, 6, 8], [2]), example([5, 6, 7], [2])])
    assert forest.rows == 2
    assert forest.target_row.tolist() == [1, 1, 1] and sorted(forest.target_token.tolist()) == [7, 7, 8]


def test_sharing_stops_at_the_first_target() -> None:
    """Equal answers are not shared: their rows are each example's own."""
    forest = plant([example([5, 6, 7, 8], [2, 3]), example([5, 6, 7, 9], [2, 3])])
    assert forest.token.tolist() == [5, 6, 7, 7] and forest.end.tolist() == [4, 4, 3, 4]


def test_a_lead_that_is_a_prefix_of_another() -> None:
    forest = plant([example([1, 2, 3, 4, 9], [4]), example([1, 2, 8], [2])])
    assert forest.token.tolist() == [1, 2, 3, 4]
    targets = zip(forest.target_example.tolist(), forest.target_row.tolist(), strict=True)
    assert dict(targets) == {0: 3, 1: 1}


def test_an_empty_batch_has_no_rows() -> None:
    forest = plant([])
    assert forest.rows == 0 and list(portions([], 8)) == []
    arrays = (forest.token, forest.position, forest.end, forest.target_row, forest.target_token, forest.target_example)
    assert all(a.dtype == np.int64 and a.shape == (0,) for a in arrays)


@pytest.mark.parametrize("lay_out", [plant, pad, lambda e: list(portions(e, 8))])
def test_an_example_without_targets_is_refused(lay_out: object) -> None:
    with pytest.raises(ValueError, match="record 3 has no supervised token"):
        lay_out([example([1, 2], [], record=3)])  # type: ignore[operator]
