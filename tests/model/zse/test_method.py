"""ZSE-SBIR as a whole: losses, what training moves, features, similarities, settings."""

import copy
import math

import pytest
import torch

from model import build_model
from model.losses import classwise_contrastive, mine_pairs
from model.zse.settings import ZSESettings
from model.zse.whitening import Whitening
from utils.errors import InputError

MINI = {"vit": "vit_mini_patch8_48"}  # the quickest: 48 px, 4 blocks, 9 or 36 anchors
PAPERS = "vit_tiny_patch16_224"  # images and patches as in the paper: 49 or 196 anchors
WEIGHTS = {
    "triplet_weight": 0.5,
    "relation_weight": 3.0,
    "contrastive_weight": 2.0,
    "classification_weight": 0.25,
}
EVERYTHING = {
    **MINI,
    **WEIGHTS,
    "shortcut": True,
    "whitening": True,
    "draws": "classes",
    "relation_loss": "logistic",
    "temperature": 0.2,
    "learn_temperature": True,
    "classes": 6,  # no setting, but how many are seen
}
SIDES = ("sketches", "photos")


@pytest.fixture
def draw_classes(draw_images):
    """A function that draws a batch of `classes`: `each` sketches and photos of every one."""

    def draw(classes: int = 3, each: int = 2, seed: int = 1) -> dict:
        targets = torch.arange(classes).repeat(each)
        return {
            "sketches": draw_images(classes * each, 48, seed),
            "photos": draw_images(classes * each, 48, seed + 100),
            "sketch_targets": targets,
            "photo_targets": targets,
            "chances": torch.rand(
                (classes * each, 2), generator=torch.Generator().manual_seed(seed)
            ),
        }

    return draw


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


# ---- losses of triplets


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
        scores.append(method.relation(*(side[:, 1:] for side in tokens)).sigmoid().item())
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
    assert method.batches == "triplets"
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
def test_published_losses_have_the_weights_of_the_settings(build_small, draw_batch):
    batch = draw_batch(2)
    published = build_small().losses(batch, 0.5)
    losses = build_small(triplet_weight=4.0, relation_weight=1.0).losses(batch, 0.5)
    torch.testing.assert_close(losses["triplet"], 2 * published["triplet"])
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
    losses = method(draw_batch(2), 0.0)
    assert set(losses) == {"contrastive", "total"}
    losses["total"].backward()
    learning = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in learning)
    assert not any(parameter.grad.any() for parameter in method.relation.parameters())
    assert any(parameter.grad.any() for parameter in method.tokenizer.parameters())


@torch.inference_mode()
def test_without_any_weight_all_losses_are_named_and_0(build_small, draw_batch):
    losses = build_small(triplet_weight=0.0, relation_weight=0.0)(draw_batch(2), 0.0)
    assert {name: loss.item() for name, loss in losses.items()} == {
        "triplet": 0,
        "relation": 0,
        "total": 0,
    }


@pytest.mark.parametrize(
    ("vit", "anchors", "keep_rate", "downsampling"),
    [
        ("test_vit", 25, 1.0, "spatial"),
        ("test_vit", 16, 0.86, "published"),
        ("test_vit", 64, 0.86, "published"),
        ("test_vit", 100, 1.0, "spatial"),
        pytest.param(PAPERS, 49, 1.0, "spatial", marks=pytest.mark.slow),
        pytest.param(PAPERS, 36, 0.9, "published", marks=pytest.mark.slow),
        pytest.param(PAPERS, 144, 0.9, "published", marks=pytest.mark.slow),
        pytest.param(PAPERS, 196, 1.0, "spatial", marks=pytest.mark.slow),
    ],
)
def test_every_number_of_anchors_trains_and_scores(
    vit, anchors, keep_rate, downsampling, draw_batch
):
    settings = {"anchors": anchors, "keep_rate": keep_rate, "downsampling": downsampling}
    torch.manual_seed(0)
    method = build_model(ZSESettings(vit=vit, **settings))
    batch = draw_batch(1, method.inputs["size"])
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


# ---- losses of classes


@torch.inference_mode()
def test_losses_of_classes_are_the_formulas_written_out(build_small, draw_classes):
    method, batch = build_small(**EVERYTHING), draw_classes(classes=6)
    targets, S = batch["sketch_targets"], 12
    losses = method.losses(batch, progress=0.5)

    sketches, photos = method.tokenizer(batch["sketches"]), method.tokenizer(batch["photos"])
    retrieval = sketches[:, 0], photos[:, 0]
    compared = [method.whitening(side, number) for number, side in enumerate(retrieval)]
    pairs = mine_pairs(*compared, targets, targets, batch["chances"], hardest=8)  # of 10
    crossed, logits = [], []
    for s, p in zip(*pairs, strict=True):
        tokens = method.cross_attention(sketches[s][None], photos[p][None])
        crossed.append((tokens[0][0, 0], tokens[1][0, 0]))
        cosine = torch.cosine_similarity(compared[0][s], compared[1][p], dim=0)
        logits.append(method.relation(*(side[:, 1:] for side in tokens), cosine[None]).item())
    triplets = []
    for i in range(S):
        (sketch, match), (_, other) = crossed[i], crossed[S + i]
        margin = 1 + (sketch - match).square().sum().sqrt() - (sketch - other).square().sum().sqrt()
        triplets.append(max(margin.item(), 0))
    relation = [math.log1p(math.exp(-x)) for x in logits[:S]]
    relation += [math.log1p(math.exp(x)) for x in logits[S:]]
    classification = 0.0
    for side in retrieval:
        scores = method.classifier(side).log_softmax(1)
        for score, target in zip(scores, targets, strict=True):  # smoothed by 0.1 over 6 classes
            classification -= (0.9 * score[target] + 0.1 * score.mean()).item() / (2 * S)
    temperature = (1 / method.contrastive_scale.exp()).item()  # not quite 0.2: drawn at random

    assert sum(triplets) > 0
    wanted = {
        "triplet": 0.5 * sum(triplets) / S,
        "relation": 3 * sum(relation) / (2 * S),
        "contrastive": 2 * classwise_contrastive(*retrieval, targets, targets, temperature).item(),
        "classification": 0.25 * classification,
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(wanted, rel=1e-4)
    assert all(loss > 0.01 for loss in wanted.values())


@pytest.mark.parametrize("name", WEIGHTS)
@torch.inference_mode()
def test_a_loss_without_a_weight_is_absent_and_changes_no_other(name, build_small, draw_classes):
    method, batch = build_small(**EVERYTHING), draw_classes()
    every = method.losses(batch, 0.5)
    without = build_small(**{**EVERYTHING, name: 0.0})
    without.load_state_dict(method.state_dict(), strict=False)
    losses = without.losses(batch, 0.5)
    assert set(losses) == {n.removesuffix("_weight") for n in WEIGHTS if n != name}
    assert all(value > 0 for value in losses.values())
    torch.testing.assert_close(losses, {loss: every[loss] for loss in losses})


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("changed", [{}, {"layers": 2, "anchors": 36, "downsampling": "spatial"}])
def test_every_parameter_learns_from_classes(changed, each, build_small, draw_classes):
    method = build_small(**{**EVERYTHING, **changed}).train()
    method(draw_classes(classes=3, each=each), 0.0)["total"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith("key.bias"):  # shifts all logits of a query alike
            assert parameter.grad.any(), name


@torch.inference_mode()
def test_pairs_of_classes_are_those_that_chances_choose(build_small, draw_classes):
    method, batch = build_small(**EVERYTHING), draw_classes(classes=6)
    once = method.losses(batch, 0.5)
    torch.rand(3)
    assert method.losses(batch, 0.5) == once
    other = method.losses({**batch, "chances": 1 - batch["chances"]}, 0.5)
    differ = {name for name in once if once[name] != other[name]}
    assert differ == {"triplet", "relation"}  # which are of pairs


@pytest.mark.parametrize("draws", ["classes", "triplets"])
def test_bfloat16_gives_finite_losses_near_those_of_fp32(
    draws, build_small, draw_batch, draw_classes
):
    method = build_small(**{**EVERYTHING, "draws": draws})
    # of two classes, an image each: the pairs are the same in any precision
    batch = draw_classes(classes=2, each=1) if draws == "classes" else draw_batch(2, size=48)
    exact = method(batch, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = method(batch, 0.0)
    assert all(loss.dtype == torch.float32 for loss in rough.values())
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.02)
    assert rough["contrastive"] != exact["contrastive"]  # of tokens computed in bfloat16
    rough["total"].backward()
    learning = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert all(parameter.grad.isfinite().all() for parameter in learning)


# ---- the temperature


def test_the_temperature_stays_unless_it_is_to_learn(draw_classes):
    batch, start = draw_classes(), torch.tensor(1 / 0.2).log()
    for learns in (False, True):
        method = _untrained(contrastive_weight=1.0, temperature=0.2, learn_temperature=learns)
        assert torch.equal(method.contrastive_scale, start)
        made = method.eval().losses(batch, 0.0)["contrastive"]
        retrieval = [method.tokenizer(batch[side])[:, 0] for side in SIDES]
        targets = batch["sketch_targets"], batch["photo_targets"]
        torch.testing.assert_close(made, classwise_contrastive(*retrieval, *targets, 0.2))
        _train(method, batch)
        assert torch.equal(method.contrastive_scale, start) != learns


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("temperature", [0.02, 0.01, 0.001])
def test_a_temperature_that_is_learned_is_a_hundredth_or_more_after_a_step(temperature, learns):
    method = _untrained(contrastive_weight=1.0, learn_temperature=learns)
    with torch.no_grad():
        method.contrastive_scale.fill_(-math.log(temperature))
    method.after_step(1)
    kept = max(temperature, 0.01) if learns else temperature
    assert (1 / method.contrastive_scale.exp()).item() == pytest.approx(kept)


def test_the_lowest_temperature_can_be_learned_away_from(draw_classes):
    method = _untrained(contrastive_weight=1.0, learn_temperature=True)
    with torch.no_grad():
        method.contrastive_scale.fill_(math.log(1000))
    method.after_step(1)
    method.losses(draw_classes(), 0.0)["contrastive"].backward()
    assert method.contrastive_scale.grad != 0
    for settings in ({"contrastive_weight": 0.0}, {"learn_temperature": False}):
        _untrained(**settings).after_step(1)  # nothing to keep


def test_without_the_contrastive_loss_there_is_no_temperature():
    assert "contrastive_scale" not in _untrained(learn_temperature=True).state_dict()


def test_nothing_precedes_training():
    method = _untrained()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method.before_training()
    assert all(torch.equal(tensor, before[n]) for n, tensor in method.state_dict().items())


# ---- whitening


def test_training_batches_move_means_and_covariance(draw_classes):
    method = _untrained(whitening=True, dropout=0.0).train()
    alone = Whitening(width=96, modalities=2)
    for seed in range(3):
        batch = draw_classes(each=2, seed=seed)
        method.losses(batch, 0.0)
        alone.follow(*(method.tokenizer(batch[side])[:, 0] for side in SIDES))
    for name, tensor in method.whitening.state_dict().items():
        torch.testing.assert_close(tensor, alone.state_dict()[name])
        assert not tensor.requires_grad


def test_evaluation_moves_nothing(draw_classes):
    method = _untrained(whitening=True).eval()
    before = copy.deepcopy(method.whitening.state_dict())
    method.losses(draw_classes(), 0.0)
    method.encode(draw_classes()["sketches"], "sketch")
    method.train().encode(draw_classes()["sketches"], "sketch")
    assert all(torch.equal(t, before[n]) for n, t in method.whitening.state_dict().items())


@torch.inference_mode()
def test_a_retrieval_token_is_whitened_as_its_modality(build_small, draw_images):
    plain, method = build_small(**MINI), build_small(**MINI, whitening=True)
    images = draw_images(2, 48)
    tokens = plain.encode(images, "sketch")["tokens"]
    method.whitening.follow(torch.randn(9, 96), torch.randn(9, 96))
    for number, modality in enumerate(("sketch", "photo")):
        features = method.encode(images, modality)
        wanted = method.whitening(tokens[:, 0], number)
        torch.testing.assert_close(features["retrieval"], wanted)
        assert torch.equal(features["tokens"], tokens)


# ---- parameter groups


def test_rates_fall_with_depth_and_new_parts_have_their_own(build_small):
    method = build_small(**EVERYTHING, learning_rate=0.5, layer_decay=0.25, new_rate=10.0)
    groups = method.parameter_groups()
    assert len(groups) == 7  # the norm, 4 blocks, the embeddings, the rest
    rates = [(id(p), group["lr"]) for group in groups for p in group["params"]]
    wanted = []
    for name, parameter in method.named_parameters():
        rate = 5.0
        if name.startswith("tokenizer."):
            rate = 0.5 * 0.25**5
        if name.startswith("tokenizer.vit.norm."):
            rate = 0.5
        if name.startswith("tokenizer.vit.blocks."):
            rate = 0.5 * 0.25 ** (4 - int(name.split(".")[3]))
        wanted.append((id(parameter), rate))
    assert sorted(rates) == sorted(wanted)
    assert [group["lr"] for group in torch.optim.AdamW(groups).param_groups] == [
        group["lr"] for group in groups
    ]


@pytest.mark.parametrize("learns", [True, False])
def test_the_published_rates_are_one_group_of_all_that_learns(learns, build_small):
    method = build_small(**{**EVERYTHING, "learn_temperature": learns})
    (group,) = method.parameter_groups()
    learning = [id(p) for p in method.parameters() if p.requires_grad]
    assert sorted(id(p) for p in group["params"]) == sorted(learning)
    assert (id(method.contrastive_scale) in learning) == learns
    assert group["lr"] == 1e-5


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
def test_with_a_shortcut_cross_attention_starts_as_the_identity(draw_images):
    for shortcut in (True, False):
        method = _untrained(shortcut=shortcut).eval()
        tokens = [method.tokenizer(draw_images(2, 48, seed)) for seed in (0, 1)]
        crossed = method.cross_attention(*tokens)
        for before, after in zip(tokens, crossed, strict=True):
            deviation, mean = torch.std_mean(before, dim=-1, keepdim=True)
            assert torch.allclose(after, (before - mean) / deviation, atol=1e-4) == shortcut


# ---- settings


def test_settings_say_everything():
    changed = {**EVERYTHING, "heads": 4, "layers": 2, "anchors": 36, "dropout": 0.25}
    method = _untrained(**changed)
    classes = changed.pop("classes")
    assert {name: getattr(method.settings, name) for name in changed} == changed
    other = build_model(method.settings, classes)
    assert other.settings == method.settings
    assert other.state_dict().keys() == method.state_dict().keys()
    assert other.batches == method.batches == "classes"


def test_what_is_left_open_follows_from_the_vit():
    with torch.device("meta"):
        method = build_model(ZSESettings(vit="vit_base_patch16_224"))
    wanted = {"width": 768, "heads": 8, "layers": 1, "hidden": 1024, "anchors": 49}
    assert {name: getattr(method.settings, name) for name in wanted} == wanted
    assert method.inputs == {"size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop": True}


def test_the_image_is_as_the_vit_wants_it():
    with torch.device("meta"):
        method = build_model(ZSESettings(vit="deit_base_patch16_384"))
    assert method.inputs == {
        "size": 384,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop": True,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anchors": 49}, r"^--anchor_number 49: .*100 patch tokens.* 25 .* 100 "),
        (
            {"keep_rate": 0.86, "anchors": 25},
            r"^--anchor_number 25: .*64 patch tokens.* 16 .* 64 ",
        ),
        ({"keep_rate": 0.9}, r"^--keep_rate 0\.9: leaves 73 patch tokens, .*a square number"),
        ({"width": 768}, r"^--d_model 768: .*test_vit have width 64"),
        ({"heads": 5}, r"^--head 5: .*width 64.* 1, 2, 4, 8, 16, 32, 64\."),
        ({"downsampling": "other"}, r"'other'.*published.*spatial"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build_model(ZSESettings(**{"vit": "test_vit", **settings}))


def _untrained(classes: int | None = None, **changed):
    """A small method with just the tensors that training starts from."""
    torch.manual_seed(0)
    return build_model(ZSESettings(**{**MINI, "draws": "classes", **changed}), classes)


def _train(method, batch: dict) -> None:
    """Two steps in training mode."""
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    method.train()
    for _ in range(2):
        optimizer.zero_grad()
        method(batch, 0.0)["total"].backward()
        optimizer.step()
