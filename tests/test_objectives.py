"""The contract that every objective keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrec.objectives import OBJECTIVES, Examples, Objective, build_examples

from .conftest import make_catalogue, make_histories

ITEMS = 14
BOTH = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def records_of(objective: Objective, seed: int = 0) -> Examples:
    """Some users' records, of whom the last has nothing to predict."""
    histories = make_histories(9, make_catalogue(ITEMS, seed), baskets=5, seed=seed)
    examples = build_examples(histories, history=6, positions=2, decay=0.3)
    last = len(examples) - 1
    asked, seen = examples.target[:, 0] < last, examples.seen[:, 0] < last
    weights = examples.weights.astype(np.float64)
    return Examples(examples.items, weights, examples.target[asked], examples.target_weight[asked], examples.seen[seen])


def scores_of(chunk: Examples, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.as_tensor(rng.normal(0, scale, (len(chunk), chunk.positions, ITEMS)))


@BOTH
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_the_derivative_is_that_of_the_loss(objective: Objective, scale: float) -> None:
    chunk = records_of(objective)
    scores = scores_of(chunk, scale=scale).requires_grad_(True)
    (slow,) = torch.autograd.grad(objective.losses(scores, chunk).sum(), scores)
    torch.testing.assert_close(objective.at_scores(scores.detach().clone(), chunk), slow, rtol=1e-5, atol=1e-7)
    assert slow[:-1].abs().sum() > 0
    assert not slow[-1].any()


@BOTH
def test_a_record_is_asked_alone(objective: Objective) -> None:
    chunk = records_of(objective)
    scores = scores_of(chunk)
    losses, at = objective.losses(scores, chunk), objective.at_scores(scores.clone(), chunk)
    for record in range(len(chunk)):
        one = chunk.take(np.array([record]))
        torch.testing.assert_close(objective.losses(scores[record : record + 1], one), losses[record : record + 1])
        torch.testing.assert_close(objective.at_scores(scores[record : record + 1].clone(), one), at[record : record + 1])
    assert losses[-1] == 0


@BOTH
def test_the_loss_of_some_items_is_that_of_the_catalogue_where_they_are_all_of_it(objective: Objective) -> None:
    """Each record's own texts are its targets, and the negatives are everything."""
    chunk = records_of(objective)
    scores = scores_of(chunk)
    planes = [torch.zeros(len(chunk), chunk.positions, ITEMS, dtype=torch.float64) for _ in objective.wanted(chunk)]
    for plane, values in zip(planes, objective.wanted(chunk), strict=True):
        plane[tuple(chunk.target.T)] = torch.as_tensor(values, dtype=torch.float64)
    masked = torch.zeros(len(chunk), chunk.positions, ITEMS, dtype=torch.bool)
    masked[tuple(chunk.seen.T)] = True
    others = [objective.sampled_losses(scores, scores if objective.negatives else scores[:, :, :0], masked, planes)]
    # A target that is among the negatives too would count twice, so each is taken out and looked at on its own.
    if objective.negatives:
        others = [torch.zeros(len(chunk), dtype=torch.float64)]
        for row, weight in zip(chunk.target, chunk.target_weight, strict=True):
            hidden = masked.clone()
            hidden[tuple(row)] = True
            alone = [torch.zeros_like(planes[0])]
            alone[0][tuple(row)] = float(weight)
            others.append(objective.sampled_losses(scores, scores, hidden, alone))
    torch.testing.assert_close(sum(others), objective.losses(scores, chunk), rtol=1e-6, atol=1e-7)
