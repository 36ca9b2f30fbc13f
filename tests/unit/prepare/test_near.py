"""Near-duplicates and prompt clusters."""

import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.adapters.words import normalise
from components.core.sources import SourceSettings
from components.prepare.config import Config
from components.prepare.examine import Examiner
from components.prepare.near import (
    PERMUTATIONS,
    Twins,
    band_width,
    clusters,
    find_twins,
    near_any,
    shingles,
    signatures,
)

drawn = random.Random(0)
VOCABULARY = ["".join(drawn.choices("abcdefghijklmnop", k=6)) for _ in range(2000)]


def text(seed: int, count: int = 200) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=count)


def rows_of(texts: list[str]) -> Any:
    return signatures([shingles(normalise(one), one) for one in texts])


def twins_of(texts: Any, threshold: float) -> Twins:
    """Twins among answers to one prompt."""
    return find_twins(texts, rows_of(["the prompt"]), np.zeros(len(texts), np.intp), threshold)


def jaccard(one: list[str], two: list[str]) -> float:
    a, b = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one, two))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("changes", [0, 5, 20, 60])
def test_signatures_estimate_the_jaccard_similarity(changes: int) -> None:
    one = text(1, 1000)
    two = one[: 1000 - changes] + text(2, changes)
    rows = rows_of([" ".join(one), " ".join(two)])
    assert (rows[0] == rows[1]).mean() == pytest.approx(jaccard(one, two), abs=0.1)


def test_the_first_of_near_copies_is_kept_and_the_others_name_it() -> None:
    base = text(3)
    texts = [text(1), base, text(2), [*base[:-1], "end"], [*base[:-2], "other", "end"], text(4)]
    twins = twins_of(rows_of([" ".join(one) for one in texts]), 0.9)
    assert twins.of.tolist() == [-1, -1, -1, 1, 1, -1]
    assert twins.similarity[3] > 0.9


def test_a_copy_of_a_copy_is_kept_where_it_is_unlike_the_first() -> None:
    base = text(5, 100)
    chain = [base, base[:95] + text(6, 5), base[:86] + text(6, 14)]
    rows = rows_of([" ".join(one) for one in chain])
    alike = [float((rows[0] == rows[n]).mean()) for n in (1, 2)]
    threshold = sum(alike) / 2
    assert twins_of(rows, threshold).of.tolist() == [-1, 0, -1]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 0.95])
def test_bands_find_nearly_every_pair_at_the_threshold(threshold: float) -> None:
    width = band_width(threshold)
    assert 1 - (1 - threshold**width) ** (PERMUTATIONS // width) >= 0.999
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**32, (500, PERMUTATIONS), dtype=np.uint32)
    second = np.where(rng.random(first.shape) < threshold + 0.03, first, first + 1)
    rows = np.concatenate([first, second]).astype(np.uint32)
    alike = (first == second).mean(axis=1) >= threshold
    assert np.array_equal((twins_of(rows, threshold).of[500:] >= 0), alike)


def test_short_texts_are_compared_as_wholes() -> None:
    texts = ["Hi", "hi!", "ho", "two words", "Two  words.", "一", "二", "?", "!"]
    assert twins_of(rows_of(texts), 0.9).of.tolist() == [-1, 0, -1, -1, 3, -1, -1, -1, -1]


def test_no_texts_have_no_twins_and_no_clusters() -> None:
    empty = signatures([])
    assert len(twins_of(empty, 0.9).of) == len(clusters(empty, 0.8)) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), max_size=40), st.randoms())
def test_clusters_are_those_of_the_graph_of_all_similar_texts(texts: list[tuple[int, int]], order: Any) -> None:
    rows = rows_of([" ".join(text(seed, 120)[: 120 - cut] + text(900 + cut, cut)) for seed, cut in texts])
    found = clusters(rows, 0.8)
    first = list(range(len(rows)))
    changed = True
    while changed:
        changed = False
        for i in range(len(rows)):
            for j in range(len(rows)):
                if (rows[i] == rows[j]).mean(dtype=np.float32) >= 0.8 and first[j] < first[i]:
                    first[i], changed = first[j], True
    assert found.tolist() == first


@pytest.mark.parametrize("threshold", [0.8, 1])
def test_texts_of_one_opening_are_one_cluster_however_many(threshold: float) -> None:
    rows = rows_of([" ".join(text(seed, 30)) for seed in range(300)])
    openings = np.array([n % 3 for n in range(300)], np.uint64)
    assert clusters(rows, threshold, openings).tolist() == [n % 3 for n in range(300)]
    many = np.random.default_rng(0).integers(0, 2**32, (50_000, PERMUTATIONS), dtype=np.uint32)
    start = time.process_time()
    assert not clusters(many, threshold, np.zeros(len(many), np.uint64)).any()
    assert time.process_time() - start < 20


names = st.lists(st.sampled_from(VOCABULARY[:30]), min_size=1, max_size=12).map(" ".join)


@settings(deadline=None)
@given(names, names, names)
def test_exchanging_the_answers_changes_nothing_that_pairs_are_compared_by(prompt: str, one: str, two: str) -> None:
    if one == two:
        return
    examiner = Examiner(Config(sources=(SourceSettings(uri="a.jsonl"),)), None)
    rows = [
        ("x:1", {"id": "p", "prompt": prompt, "response_a": one, "response_b": two, "label": "A"}),
        ("x:2", {"id": "q", "prompt": prompt, "response_a": two, "response_b": one, "label": "B"}),
    ]
    found = examiner.examine((0, rows))
    first, second = found.outcomes
    assert first.content == second.content  # type: ignore[union-attr]
    assert first.first_wins == second.first_wins  # type: ignore[union-attr]
    assert np.array_equal(found.answers[0], found.answers[1])


def test_other_answers_to_a_long_prompt_and_the_same_answers_to_another_are_no_copies(prepare: Any, row: Any) -> None:
    long = " ".join(text(1, 500))
    rows = [row(n, prompt=long, response_a=" ".join(text(100 + n, 20)), response_b="No.") for n in range(20)]
    rows += [
        row(n, prompt=f"Is {n} a prime?", response_a="Yes.", response_b="No, I do not think so.")
        for n in range(40, 100)
    ]
    statistics, _ = prepare(rows)
    assert statistics["dropped"] == {}
    assert statistics["clusters"]["largest"] == 20


def test_short_answers_to_different_questions_on_one_context_are_no_copies(prepare: Any, row: Any) -> None:
    context = " ".join(text(1, 400))
    rows = [
        row(n, prompt=f"{context} Question: {' '.join(text(100 + n, 8))}?", response_a="Yes", response_b="No")
        for n in range(200)
    ]
    again = row(500, prompt=rows[7]["prompt"] + "!", response_a="Yes.", response_b="No!", label=rows[7]["label"])
    statistics, _ = prepare([*rows, *[row(n) for n in range(200, 260)], again])
    assert statistics["dropped"] == {"near-duplicate": 1}


def test_near_copies_with_the_other_label_take_the_first_and_all_its_copies_out(
    prepare: Any, row: Any, parts: Any, quarantined: Any
) -> None:
    def copy(number: int, name: int, label: str, end: str = "") -> Any:
        answers = {"response_a": " ".join(text(number, 60)) + end, "response_b": " ".join(text(1000 + number, 60))}
        return row(name, prompt=" ".join(text(2000 + number, 30)), label=label, **answers)

    rows = [copy(n, n, "A") for n in range(60)]
    rows += [copy(1, 101, "B", "."), copy(1, 102, "A", " !")]  # the label crossed, typed otherwise
    rows += [copy(2, 103, "B"), copy(2, 104, "A", ".")]  # the same text crossed, and a copy of it
    rows += [copy(3, 105, "A", " ...")]
    rows += [copy(4, 106, "A", "."), copy(4, 107, "B", ".")]  # the copy crossed, not the first
    statistics, directory = prepare(rows)
    assert statistics["dropped"] == {"contradicting labels": 8, "near-duplicate": 2}
    kept = {pair.id for pairs in parts(directory).values() for pair in pairs}
    assert kept == {f"p{n}" for n in range(60) if n not in (1, 2, 4)}
    assert len(quarantined(directory)) == 10


def test_near_copies_are_dropped_with_the_place_of_their_twin(prepare: Any, row: Any, quarantined: Any) -> None:
    long = {n: " ".join(text(n)) for n in range(60)}
    rows = [row(n, response_b=long[n]) for n in range(60)]
    rows.append(row(100, prompt=row(7)["prompt"], response_a=f"{long[7]} indeed", response_b=row(7)["response_a"]))
    statistics, directory = prepare(rows)
    assert statistics["dropped"] == {"near-duplicate": 1}
    (item,) = quarantined(directory)
    assert ":61 " in item["place"]
    assert ":8 " in item["reason"]
    assert float(item["reason"].rpartition(" ")[2]) > 0.9
    assert prepare(rows, near_duplicate=1)[0]["dropped"] == {}


def test_texts_near_known_ones_are_found_within_a_template_too():
    random_bytes = np.random.default_rng(0)
    known = random_bytes.integers(0, 256, (20_000, PERMUTATIONS), dtype=np.uint8)
    known[:, :40] = 7  # what all prompts of a template share
    rows = random_bytes.integers(0, 256, (400, PERMUTATIONS), dtype=np.uint8)
    rows[:, :40] = 7
    rows[:200] = known[::100]
    rows[:200, -15:] = 0  # similarity 0.88
    began = time.process_time()
    near = near_any(rows, known, 0.8)
    assert time.process_time() - began < 7  # 0.3 s; each against all of its template 15 s
    assert near[:200].mean() > 0.95 and not near[200:].any()
    assert not near_any(rows, known[:0], 0.8).any() and not near_any(known, known, 1.0).any()
