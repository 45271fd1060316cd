"""ZSE-SBIR as a whole: losses, features, similarities, settings."""

import pytest
import torch

from model import build_model
from model.losses import classwise_contrastive
from utils.errors import InputError


@pytest.fixture
def draw_batch(draw_images):
    """A function that draws a batch of B triplets: 2 B sketches and 2 B photos."""

    def draw(B: int, size: int = 160) -> dict:
        own, other = torch.arange(B), torch.arange(B) + B
        return {
            "sketches": draw_images(2 * B, size, seed=1),
            "photos": draw_images(2 * B, size, seed=2),
            "sketch_targets": torch.cat([own, own]),
            "photo_targets": torch.cat([own, other]),
        }

    return draw


# ---- losses


@torch.inference_mode()
def test_losses_are_the_published_formula(build_small, draw_batch):
    method, batch, B = build_small(), draw_batch(3), 3
    losses = method.losses(batch, progress=0.5)

    crossed_sketch, crossed_photo, scores = [], [], []
    for sketch, photo in zip(batch["sketches"], batch["photos"], strict=True):
        tokens = method.tokenizer(sketch[None]), method.tokenizer(photo[None])
        tokens = method.cross_attention(*tokens)
        crossed_sketch.append(tokens[0][0, 0])
        crossed_photo.append(tokens[1][0, 0])
        scores.append(method.relation(tokens[0][:, 1:], tokens[1][:, 1:]).sigmoid().item())
    triplets = []
    for i in range(B):
        s1, p, n = crossed_sketch[i], crossed_photo[i], crossed_photo[B + i]
        margin = 1 + (s1 - p).square().sum().sqrt() - (s1 - n).square().sum().sqrt()
        triplets.append(max(margin.item(), 0))
    squares = [(score - 0.99) ** 2 for score in scores[:B]]
    squares += [(score - 0.01) ** 2 for score in scores[B:]]

    assert set(losses) == {"triplet", "relation"}
    assert sum(triplets) > 0
    assert losses["triplet"].item() == pytest.approx(2 * sum(triplets) / B, rel=1e-4)
    assert losses["relation"].item() == pytest.approx(4 * sum(squares) / (2 * B), rel=1e-4)


def test_progress_changes_no_loss(build_small, draw_batch):
    method, batch = build_small(contrastive_weight=1.0), draw_batch(1)
    torch.testing.assert_close(method(batch, 0.0), method(batch, 1.0), rtol=0, atol=0)


@torch.inference_mode()
def test_contrastive_weight_adds_exactly_one_loss(build_small, draw_batch):
    batch = draw_batch(2)
    published = build_small().losses(batch, 0.5)
    method = build_small(contrastive_weight=0.25)
    losses = method.losses(batch, 0.5)
    contrastive = losses.pop("contrastive")
    torch.testing.assert_close(losses, published, rtol=0, atol=0)
    wanted = classwise_contrastive(
        method.encode(batch["sketches"], "sketch")["retrieval"],
        method.encode(batch["photos"], "photo")["retrieval"],
        batch["sketch_targets"],
        batch["photo_targets"],
        temperature=0.07,
    )
    torch.testing.assert_close(contrastive, 0.25 * wanted)
    assert wanted > 0


@torch.inference_mode()
def test_classification_weight_adds_exactly_one_loss(build_small, draw_batch):
    batch = draw_batch(2)
    plain = build_small()
    published = plain.losses(batch, 0.5)
    method = build_small(classification_weight=0.25, classes=5)
    method.load_state_dict(plain.state_dict(), strict=False)
    losses = method.losses(batch, 0.5)
    classification = losses.pop("classification")
    torch.testing.assert_close(losses, published, rtol=0, atol=0)
    wanted = 0.0
    for images, targets, modality in (
        (batch["sketches"], batch["sketch_targets"], "sketch"),
        (batch["photos"], batch["photo_targets"], "photo"),
    ):
        scores = method.classifier(method.encode(images, modality)["retrieval"]).log_softmax(1)
        for score, target in zip(scores, targets, strict=True):  # smoothed by 0.1 over 5 classes
            wanted -= 0.9 * score[target] + 0.1 * score.mean()
    torch.testing.assert_close(classification, 0.25 * wanted / 8)


@torch.inference_mode()
def test_published_losses_are_weighted_as_asked(build_small, draw_batch):
    batch = draw_batch(2)
    published = build_small().losses(batch, 0.5)
    losses = build_small(triplet_weight=0.0, relation_weight=1.0).losses(batch, 0.5)
    assert losses["triplet"] == 0
    torch.testing.assert_close(4 * losses["relation"], published["relation"])


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"anchors": 100},
        {"layers": 2, "keep_rate": 0.86},
        {"triplet_weight": 0.0, "classification_weight": 1.0, "classes": 5},
    ],
)
def test_every_parameter_learns(changed, build_small, draw_batch):
    method = build_small(**changed).train()
    method(draw_batch(2), 0.0)["total"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith("key.bias"):  # shifts all logits of a query alike
            assert parameter.grad.any(), name


def test_without_the_pair_losses_every_parameter_still_has_a_gradient(build_small, draw_batch):
    weights = {"triplet_weight": 0.0, "relation_weight": 0.0, "contrastive_weight": 1.0}
    method = build_small(**weights).train()
    method(draw_batch(2), 0.0)["total"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert not any(parameter.grad.any() for parameter in method.relation.parameters())
    assert any(parameter.grad.any() for parameter in method.tokenizer.parameters())


@pytest.mark.parametrize(
    ("anchors", "keep_rate", "downsampling"),
    [(49, 1.0, "spatial"), (36, 0.9, "published"), (144, 0.9, "published"), (196, 1.0, "spatial")],
)
def test_every_number_of_anchors_trains_and_scores(anchors, keep_rate, downsampling, draw_batch):
    torch.manual_seed(0)
    method = build_model(
        "zse_sbir",
        vit="vit_tiny_patch16_224",
        anchors=anchors,
        keep_rate=keep_rate,
        downsampling=downsampling,
    )
    batch = draw_batch(1, size=224)
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-3)
    last = method.relation.score[-1].weight
    before = last.clone()
    method(batch, 0.0)["total"].backward()
    assert method.relation.score[0].weight.grad.any()
    optimizer.step()
    assert not torch.equal(last, before)
    method.eval()
    with torch.inference_mode():
        queries = method.encode(batch["sketches"][:1], "sketch")
        gallery = method.encode(batch["photos"], "photo")
        scores = method.pair_similarity(queries, gallery)
    assert scores.shape == (1, 2)
    assert scores.isfinite().all()


# ---- features and similarities


@torch.inference_mode()
def test_retrieval_is_the_class_token_before_cross_attention(build_small, draw_images):
    method = build_small()
    features = method.encode(draw_images(2), "sketch")
    assert features["tokens"].shape == (2, 101, 64)
    assert torch.equal(features["retrieval"], features["tokens"][:, 0])
    assert torch.equal(features["tokens"], method.tokenizer(draw_images(2)))


@torch.inference_mode()
def test_one_by_one_equals_in_a_batch(build_small, draw_images):
    method, images = build_small(keep_rate=0.86), draw_images(4)
    together = method.encode(images, "photo")["tokens"]
    alone = torch.cat([method.encode(image[None], "photo")["tokens"] for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_similarity_is_the_cosine(build_small, draw_images):
    method = build_small()
    queries = method.encode(draw_images(2), "sketch")
    gallery = method.encode(draw_images(3, seed=1), "photo")
    made = method.similarity(queries, gallery)
    for q, query in enumerate(queries["retrieval"]):
        for g, other in enumerate(gallery["retrieval"]):
            torch.testing.assert_close(made[q, g], torch.cosine_similarity(query, other, dim=0))


@torch.inference_mode()
def test_pair_similarity_is_the_logit_of_each_pair(build_small, draw_images):
    method = build_small()
    queries = method.encode(draw_images(2), "sketch")["tokens"]
    gallery = method.encode(draw_images(3, seed=1), "photo")["tokens"]
    made = method.pair_similarity({"tokens": queries}, {"tokens": gallery})
    for q in range(2):
        for g in range(3):
            sketch, photo = method.cross_attention(queries[q : q + 1], gallery[g : g + 1])
            logit = method.relation(sketch[:, 1:], photo[:, 1:])[0]
            torch.testing.assert_close(made[q, g], logit, rtol=1e-5, atol=1e-5)
    assert made.std() > 1e-4


@pytest.mark.parametrize("changed", [{}, {"anchors": 100}, {"downsampling": "spatial"}])
@torch.inference_mode()
def test_pair_similarity_of_blocks_is_that_of_all(changed, build_small, draw_images):
    method = build_small(**changed)
    queries = method.encode(draw_images(3), "sketch")["tokens"]
    gallery = method.encode(draw_images(5, seed=1), "photo")["tokens"]
    full = method.pair_similarity({"tokens": queries}, {"tokens": gallery})
    blocked = torch.cat(
        [
            torch.cat(
                [method.pair_similarity({"tokens": q}, {"tokens": g}) for g in gallery.split(2)],
                dim=1,
            )
            for q in queries.split(2)
        ]
    )
    assert full.shape == (3, 5)
    torch.testing.assert_close(blocked, full, rtol=1e-5, atol=1e-5)


# ---- settings


def test_what_is_left_open_follows_from_the_vit():
    with torch.device("meta"):
        method = build_model("zse_sbir", vit="vit_base_patch16_224")
    wanted = {"width": 768, "heads": 8, "layers": 1, "hidden": 1024, "anchors": 49}
    assert {name: method.settings[name] for name in wanted} == wanted
    assert method.inputs == {"size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop": True}


def test_the_image_is_as_the_vit_wants_it():
    with torch.device("meta"):
        method = build_model("zse_sbir", vit="deit_base_patch16_384")
    assert method.inputs == {
        "size": 384,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop": True,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anchors": 49}, r"49 anchors .*100 patch tokens.* 25 .* 100 "),
        ({"keep_rate": 0.86, "anchors": 25}, r"25 anchors .*64 patch tokens.* 16 .* 64 "),
        ({"keep_rate": 0.9}, r"73 patch tokens .*not a square"),
        ({"width": 768}, r"d_model 768 .*test_vit.* 64"),
        ({"heads": 5}, r"5 heads .*width 64.*\[1, 2, 4, 8, 16, 32, 64\]"),
        ({"downsampling": "other"}, r"'other'.*published.*spatial"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build_model("zse_sbir", vit="test_vit", **settings)
