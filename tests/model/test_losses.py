"""The class-wise contrastive loss against a slow loop, and its degenerate cases."""

import math

import pytest
import torch

from model.losses import classwise_contrastive

TEMPERATURE = 0.2


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
