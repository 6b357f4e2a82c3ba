"""A variant counts by what it was trained for: the result, in every seed, by one test."""

import numpy as np
import pytest

from keylayers.measures.accuracy import Accuracy
from keylayers.papers.math_layers import cells as cells
from keylayers.papers.math_layers.post_training import problems
from keylayers.papers.math_layers.study import differs


def test_a_chain_counts_by_its_result_however_it_is_reached(monkeypatch):
    asked = problems("test", (3,), 4, seed=1)
    results = [one.values[-1] for one in asked]
    told = (
        asked[0].answer,  # as it was taught
        f"Straight away. Answer {results[1]}.",  # another way to the right result
        f"{asked[2].answer.rpartition('Answer')[0]}Answer {results[2] + 1}.",  # the right way to another result
        f"{results[3]} and on and on",  # cut before it ends
    )
    seen = []

    def written(model, tokenizer, records, max_new_tokens):
        seen.append((model, [one.prompt for one in records], max_new_tokens))
        return Accuracy((False,) * len(told), told)

    monkeypatch.setattr(cells, "exact_match", written)
    assert np.array_equal(cells.wrong_results(asked, None, "model"), [0, 0, 1, 1])
    assert seen == [("model", [one.question for one in asked], 160)]


@pytest.mark.parametrize(
    ("costs", "judged"),
    [
        ([0.80, 0.79, 0.81], True),  # small, but so in every seed
        ([0.80, 0.79, 0.81] * 4, True),  # more seeds do not make it rarer
        ([0.80, 0.79, 0.86], False),  # one seed is worse than its base
        ([0.84, 0.60, 0.20], False),  # lower in every seed, and the spread as large
        ([0.90, 0.91, 0.92], False),
    ],
)
def test_a_variant_is_judged_by_one_test_over_seeds_and_the_sign_in_each(costs, judged):
    assert differs([{"cost_before": 0.85, "cost": cost} for cost in costs]) == judged


@pytest.mark.parametrize(
    ("exact", "chosen"),
    [
        ({"5": 1.0, "6": 0.9, "7": 0.02, "8": 0.0}, (6, 7)),
        ({"5": 0.98, "6": 0.95, "7": 0.0}, (6,)),  # none between: the nearest to a half
        ({"5": 1.0, "6": 0.6, "7": 0.3}, (6, 7)),
    ],
)
def test_rewarded_are_chains_that_leave_something_to_learn(exact, chosen):
    assert cells.between(exact, 0.01, 0.9) == chosen
