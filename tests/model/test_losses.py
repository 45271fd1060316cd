"""The losses, and the pairs that they compare, against slow loops; degenerate cases."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from model.losses import (
    classwise_contrastive,
    mine_pairs,
    relation_logistic,
    relation_mse,
)

TEMPERATURE = 0.2


# ---- class-wise contrastive


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_rule_written_out(seed):
    sketches, photos, sketch_targets, photo_targets = _draw(seed, sketches=6, photos=8, classes=4)
    made = classwise_contrastive(sketches, photos, sketch_targets, photo_targets, TEMPERATURE)
    there = _one_way_by_hand(sketches, photos, sketch_targets, photo_targets)
    back = _one_way_by_hand(photos, sketches, photo_targets, sketch_targets)
    assert there != pytest.approx(back)
    assert made.item() == pytest.approx((there + back) / 2, rel=1e-5)


def test_a_case_worked_by_hand():
    """One sketch at right angles to a photo of its class and along a photo of another."""
    sketches = torch.tensor([[2.0, 0.0]])
    photos = torch.tensor([[0.0, 3.0], [5.0, 0.0]])
    made = classwise_contrastive(sketches, photos, torch.tensor([1]), torch.tensor([1, 2]), 0.5)
    # sketch: logits 0 and 2; first photo: its only sketch, certain; second photo: no partner
    assert made.item() == pytest.approx(math.log(1 + math.exp(2)) / 2)


def test_length_does_not_matter():
    sketches, photos, *targets = _draw(0, sketches=4, photos=4, classes=2)
    made = classwise_contrastive(sketches, photos, *targets, TEMPERATURE)
    stretched = classwise_contrastive(3 * sketches, 0.1 * photos, *targets, TEMPERATURE)
    torch.testing.assert_close(made, stretched)


def test_swapping_the_modalities_changes_nothing():
    sketches, photos, sketch_targets, photo_targets = _draw(1, sketches=5, photos=7, classes=3)
    made = classwise_contrastive(sketches, photos, sketch_targets, photo_targets, TEMPERATURE)
    swapped = classwise_contrastive(photos, sketches, photo_targets, sketch_targets, TEMPERATURE)
    torch.testing.assert_close(made, swapped)


def test_without_any_partner_the_loss_is_0_and_so_is_its_gradient():
    sketches, photos, _, _ = _draw(0, sketches=3, photos=4, classes=1)
    made, gradients = _with_gradients(
        sketches, photos, torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5, 6])
    )
    assert made.item() == 0
    assert not any(gradient.any() for gradient in gradients)


def test_images_without_a_partner_do_not_count_but_stay_wrong_answers():
    sketches, photos, _, _ = _draw(2, sketches=2, photos=2, classes=1)
    made = classwise_contrastive(
        sketches, photos, torch.tensor([0, 1]), torch.tensor([0, 2]), TEMPERATURE
    )
    matrix = torch.nn.functional.normalize(sketches, dim=-1)
    matrix = matrix @ torch.nn.functional.normalize(photos, dim=-1).T / TEMPERATURE
    there = matrix[0].logsumexp(0) - matrix[0, 0]
    back = matrix[:, 0].logsumexp(0) - matrix[0, 0]
    torch.testing.assert_close(made, (there + back) / 2)


def test_one_class_only_has_every_photo_as_partner():
    sketches, photos, _, _ = _draw(0, sketches=3, photos=4, classes=1)
    targets = torch.zeros(3, dtype=torch.long), torch.zeros(4, dtype=torch.long)
    made, gradients = _with_gradients(sketches, photos, *targets)
    assert made.item() > 0
    assert all(gradient.isfinite().all() for gradient in gradients)
    alike = classwise_contrastive(torch.ones(3, 2), torch.ones(4, 2), *targets, TEMPERATURE)
    assert alike.item() == pytest.approx((math.log(4) + math.log(3)) / 2)


def test_zero_vectors_give_a_finite_loss_and_gradient():
    made, gradients = _with_gradients(
        torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([0, 1])
    )
    assert made.item() == pytest.approx(math.log(2))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_right_order_costs_less_than_wrong_order():
    vectors, targets = torch.eye(3), torch.tensor([0, 1, 2])
    right = classwise_contrastive(vectors, vectors, targets, targets, TEMPERATURE)
    wrong = classwise_contrastive(vectors, vectors.roll(1, dims=0), targets, targets, TEMPERATURE)
    assert right < 0.02 < 5 < wrong


# ---- of the relation network


def test_relation_mse_is_the_published_formula():
    scores, matches = [0.2, 0.99, 0.5, 0.9, 0.01], [1, 1, 0, 0, 0]
    logits = torch.tensor([math.log(score / (1 - score)) for score in scores])
    # distances to 0.99 of the matches, to 0.01 of the others
    wanted = (0.79**2 + 0 + 0.49**2 + 0.89**2 + 0) / 5
    made = relation_mse(logits, torch.tensor(matches).float())
    assert made.item() == pytest.approx(wanted)


def test_relation_logistic_equals_the_rule_written_out():
    logits, matches = torch.tensor([2.0, -1.0, 0.5, 3.0, -4.0]), torch.tensor([1.0, 0, 1, 0, 0])
    of_matches = [-math.log(_sigmoid(2)), -math.log(_sigmoid(0.5))]
    of_others = [-math.log(1 - _sigmoid(x)) for x in (-1, 3, -4)]
    wanted = (sum(of_matches) / 2 + sum(of_others) / 3) / 2
    assert relation_logistic(logits, matches).item() == pytest.approx(wanted)


def test_relation_logistic_of_nothing_known_is_log_2():
    assert relation_logistic(torch.zeros(2), torch.tensor([1.0, 0.0])).item() == pytest.approx(
        math.log(2)
    )


def test_relation_logistic_balances_unequal_counts():
    """The same others, three times over, weigh no more against the one match."""
    match, others = torch.tensor([0.3]), torch.tensor([-1.0, 2.0])
    made, gradients = [], []
    for times in (1, 3):
        logits = torch.cat([match, others.repeat(times)]).requires_grad_()
        matches = torch.tensor([1.0] + [0.0] * 2 * times)
        loss = relation_logistic(logits, matches)
        loss.backward()
        made.append(loss)
        gradients.append(logits.grad[0])
    torch.testing.assert_close(*made)
    torch.testing.assert_close(*gradients)


def test_relation_logistic_of_great_logits_is_finite():
    logits = torch.tensor([-200.0, 300.0], requires_grad=True)
    loss = relation_logistic(logits, torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx((200 + 300) / 2)
    torch.testing.assert_close(logits.grad, torch.tensor([-0.5, 0.5]))


# ---- mined pairs


@pytest.mark.parametrize("hardest", [1, 3, 100])
@pytest.mark.parametrize("seed", range(5))
def test_the_first_half_matches_and_the_second_does_not(seed, hardest):
    batch = _draw_classes(seed)
    sketches, _, sketch_targets, photo_targets, _ = batch
    of_sketch, of_photo = mine_pairs(*batch, hardest)
    S = len(sketches)
    assert of_sketch.tolist() == [*range(S), *range(S)]
    assert of_photo.shape == (2 * S,)
    same = sketch_targets[of_sketch] == photo_targets[of_photo]
    assert same.tolist() == [True] * S + [False] * S


@pytest.mark.parametrize(
    ("chances", "hardest", "match", "other"),
    [
        ((0.0, 0.0), 2, 2, 1),  # the closest of each
        ((0.3, 0.4), 2, 2, 1),
        ((0.4, 0.5), 2, 0, 5),
        ((0.7, 0.9), 2, 4, 5),
        ((0.7, 0.9), 3, 4, 3),
        ((0.0, 0.9), 1, 2, 1),
        ((0.9, 0.0), 100, 4, 1),
    ],
)
def test_chances_choose_by_hand(chances, hardest, match, other):
    """Cosines with the one sketch: 0.6, 0.8, 1, -1, 0 and 0.28; photos 0, 2 and 4 match."""
    photos = torch.tensor([[3, 4], [8, -6], [0.1, 0], [-5, 0], [0, 2], [7, 24]]).float()
    targets = torch.tensor([6]), torch.tensor([6, 1, 6, 1, 6, 2])
    sketch, of_one = torch.tensor([[9.0, 0.0]]), torch.tensor([chances])
    of_sketch, of_photo = mine_pairs(sketch, photos, *targets, of_one, hardest)
    assert (of_sketch.tolist(), of_photo.tolist()) == ([0, 0], [match, other])


@pytest.mark.parametrize("hardest", [1, 3, 7, 12])
def test_even_chances_take_every_match_and_each_of_the_hardest_equally_often(hardest):
    sketches, photos, sketch_targets, photo_targets, _ = _draw_classes(0)
    S, even = len(sketches), (torch.arange(84) + 0.5) / 84  # 84 = 4 x 21 = 12 x 7
    found = [
        mine_pairs(
            *(sketches, photos, sketch_targets, photo_targets),
            torch.tensor([chance, 1 - chance]).repeat(S, 1),
            hardest,
        )[1]
        for chance in even
    ]
    for s in range(S):
        matching = [p for p in range(len(photos)) if photo_targets[p] == sketch_targets[s]]
        others = [p for p in range(len(photos)) if photo_targets[p] != sketch_targets[s]]
        others.sort(key=lambda p: -torch.cosine_similarity(sketches[s], photos[p], dim=0).item())
        assert (len(matching), len(others)) == (4, 12)
        chosen = Counter(of_photo[s].item() for of_photo in found)
        assert chosen == dict.fromkeys(matching, 21)
        chosen = Counter(of_photo[S + s].item() for of_photo in found)
        assert chosen == dict.fromkeys(others[:hardest], 84 // hardest)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_chances_choose_the_same_photos_in_whatever_order_they_come(seed):
    sketches, photos, sketch_targets, photo_targets, chances = _draw_classes(seed)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    moved = photos[order], sketch_targets, photo_targets[order]
    here = mine_pairs(sketches, photos, sketch_targets, photo_targets, chances, 3)[1]
    there = mine_pairs(sketches, *moved, chances, 3)[1]
    assert torch.equal(order[there], here) and not torch.equal(there, here)


def test_each_sketch_is_served_by_its_own_chances():
    sketches, photos, *targets, chances = _draw_classes(0)
    former = mine_pairs(sketches, photos, *targets, chances, 8)[1].view(2, 8)
    for kind in (0, 1):
        changed = chances.clone()
        changed[5, kind] = (changed[5, kind] + 0.5) % 1
        now = mine_pairs(sketches, photos, *targets, changed, 8)[1].view(2, 8)
        assert (now != former).nonzero().tolist() == [[kind, 5]]


def test_the_largest_chance_below_1_is_the_last_photo_and_none_beyond():
    """Of any number of them: rounding may not carry it over the end."""
    highest = torch.tensor([[1 - 2.0**-24] * 2])
    assert highest.max() < 1
    for count in (1, 2, 3, 5, 12, 100, 1023):
        angles = torch.linspace(0, 3, count)
        photos = torch.stack([angles.cos(), angles.sin()], dim=1).repeat(2, 1)
        photo_targets = torch.arange(2).repeat_interleave(count)
        sketch = torch.tensor([[1.0, 0.0]])
        found = mine_pairs(sketch, photos, torch.tensor([0]), photo_targets, highest, count)
        assert found[1].tolist() == [count - 1, 2 * count - 1]


def test_fewer_other_photos_than_hardest_are_enough():
    sketch_targets, photo_targets = torch.tensor([0, 1]), torch.tensor([0, 1, 1])
    found = set()
    for seed in range(20):
        torch.manual_seed(seed)
        of_sketch, of_photo = mine_pairs(
            *(torch.randn(2, 5), torch.randn(3, 5), sketch_targets, photo_targets),
            torch.rand(2, 2),
            hardest=8,
        )
        assert of_sketch.tolist() == [0, 1, 0, 1]
        assert of_photo[0] == of_photo[3] == 0  # the only photo of class 0
        found.add(tuple(of_photo.tolist()))
    assert len(found) == 4  # two photos to match sketch 1, two others for sketch 0


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.99])
def test_of_one_match_and_one_other_photo_there_is_no_choice(chance):
    targets = torch.tensor([0, 1])
    chances = torch.full((2, 2), chance)
    _, of_photo = mine_pairs(torch.eye(2), torch.eye(2), targets, targets, chances, hardest=8)
    assert of_photo.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("chance", [0.0, 0.99])
def test_tokens_that_are_not_finite_give_numbers_of_photos_all_the_same(value, side, chance):
    """The losses, which are not finite then, say what has happened."""
    batch = list(_draw_classes(0))
    for rows in (slice(3, 4), slice(None)):
        batch[side] = batch[side].clone()
        batch[side][rows] = value
        batch[4] = torch.full((8, 2), chance)
        of_sketch, of_photo = mine_pairs(*batch, hardest=3)
        assert of_sketch.tolist() == [*range(8), *range(8)]
        assert of_photo.shape == (16,) and all(0 <= p < 16 for p in of_photo.tolist())


def test_pairs_are_drawn_from_no_generator():
    batch = _draw_classes(0)

    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    once = mine_pairs(*batch, hardest=8)
    assert states() == before
    torch.manual_seed(3)
    assert torch.equal(mine_pairs(*batch, hardest=8)[1], once[1])


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _draw_classes(seed: int):
    """8 sketches and 16 photos of 4 classes, of very different lengths; targets and chances."""
    generator = torch.Generator().manual_seed(seed)
    sketches, photos = (
        torch.randn(count, 5, generator=generator) * 10 ** torch.rand(count, 1, generator=generator)
        for count in (8, 16)
    )
    chances = torch.rand(8, 2, generator=generator)
    return sketches, photos, torch.arange(8) % 4, torch.arange(16) // 4, chances


def _draw(seed: int, *, sketches: int, photos: int, classes: int):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(sketches, 5, generator=generator),
        torch.randn(photos, 5, generator=generator),
        torch.randint(classes, (sketches,), generator=generator),
        torch.randint(classes, (photos,), generator=generator),
    )


def _with_gradients(sketches, photos, sketch_targets, photo_targets):
    sketches.requires_grad_()
    photos.requires_grad_()
    loss = classwise_contrastive(sketches, photos, sketch_targets, photo_targets, TEMPERATURE)
    loss.backward()
    return loss, (sketches.grad, photos.grad)


def _one_way_by_hand(queries, gallery, query_targets, gallery_targets) -> float:
    """Supervised contrastive loss of the queries that have a partner in the gallery."""
    of_queries = []
    for query, target in zip(queries, query_targets, strict=True):
        cosines = [torch.cosine_similarity(query, other, dim=0).item() for other in gallery]
        exponentials = [math.exp(cosine / TEMPERATURE) for cosine in cosines]
        terms = [
            -math.log(exponential / sum(exponentials))
            for exponential, other in zip(exponentials, gallery_targets, strict=True)
            if other == target
        ]
        if terms:
            of_queries.append(sum(terms) / len(terms))
    return sum(of_queries) / len(of_queries)
