"""What every method of the table must keep to."""

import dataclasses
import json
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from saved_tensors import Kept
from torch import nn

import model
from datasets.images import Preprocessing
from model import METHODS, build_model, load_model, settings_class
from model.method import Method
from model.settings import TrainingSettings, options_of, setting
from model.zse.method import ZSE
from training.batches import BATCHES
from utils.errors import InputError

SMALL = {
    "zse_sbir": [
        ({"vit": "test_vit"}, None),
        (
            {
                "vit": "vit_mini_patch8_48",
                "downsampling": "spatial",
                "shortcut": True,
                "whitening": True,
                "draws": "classes",
                "relation_loss": "logistic",
                "contrastive_weight": 1.0,
                "learn_temperature": True,
                "classification_weight": 0.5,
            },
            3,
        ),
    ],
    "bare": [({"outputs": 5}, None), ({"outputs": 7}, 3)],
}
"""Settings that make each method small, and its seen classes; several for one that can be very
different things."""


@dataclass(frozen=True)
class BareSettings(TrainingSettings):
    method = "bare"

    outputs: int = setting(6, "numbers of a vector", least=1, rebuilds=True)


class Bare(Method):
    """The least that a method can be: no scores of pairs, no blocks, one group of parameters."""

    name = "bare"
    batches = "triplets"

    def __init__(self, settings, classes=None):
        super().__init__()
        self.settings = settings
        self.embedding = nn.Linear(3 * 8 * 8, settings.outputs)
        self.inputs = {"size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop": False}

    def losses(self, batch, progress):
        sides = (self.encode(batch[side], "") for side in ("sketches", "photos"))
        sketches, photos = (side["retrieval"] for side in sides)
        return {"distance": (sketches - photos).square().mean(), "size": sketches.square().mean()}

    def encode(self, images, modality):
        return {"retrieval": self.embedding(images.flatten(1))}

    def load_pretrained(self, path):
        return ""


@pytest.fixture
def bare_in_table(monkeypatch):
    """The table of methods with Bare in it."""
    assert sys.modules[__name__].Bare is Bare
    monkeypatch.setitem(model.METHODS, "bare", (f"{__name__}:Bare", f"{__name__}:BareSettings"))


@pytest.fixture(params=[(name, i) for name in SMALL for i in range(len(SMALL[name]))], ids=str)
def build(request, bare_in_table):
    """A function that builds the method, with some settings changed."""
    name, number = request.param
    settings, classes = SMALL[name][number]

    def build(**changed) -> Method:
        torch.manual_seed(0)
        return build_model(settings_class(name)(**{**settings, **changed}), classes)

    return build


@pytest.fixture
def method(build) -> Method:
    return build().eval()


@pytest.fixture
def draw(method, draw_images):
    """A function that draws images of the size that the method wants."""
    return lambda count, seed=0: draw_images(count, method.inputs["size"], seed)


@pytest.fixture
def batch(method, draw):
    assert method.batches in ("triplets", "classes"), "make a batch of this kind here"
    return {
        "sketches": draw(4),
        "photos": draw(4, seed=1),
        "sketch_targets": torch.tensor([0, 1, 0, 1]),
        "photo_targets": torch.tensor([0, 1, 2, 0]),
        "chances": torch.tensor([[0.1, 0.9], [0.2, 0.6], [0.7, 0.3], [0.4, 0.0]]),
    }


def test_every_method_of_the_table_is_tested():
    assert SMALL.keys() - {"bare"} == METHODS.keys()


def test_is_what_the_table_says(method):
    place, place_of_settings = METHODS[method.name]
    assert place == f"{type(method).__module__}:{type(method).__name__}"
    assert isinstance(method, Method)
    kind = settings_class(method.name)
    assert type(method.settings) is kind and issubclass(kind, TrainingSettings)
    assert place_of_settings == f"{kind.__module__}:{kind.__name__}"
    assert kind.method == method.name


def test_every_recipe_is_settings_of_the_method(method):
    for pretrained in (True, False):
        recipes = type(method.settings).recipes(pretrained)
        assert recipes and {type(recipe) for recipe in recipes.values()} == {type(method.settings)}
    assert recipes.keys() == type(method.settings).recipes(pretrained=True).keys()


def test_total_is_the_sum_of_the_named_losses(method, batch):
    losses = method.losses(batch, 0.5)
    made = method(batch, 0.5)
    assert losses
    assert "total" not in losses
    assert set(made) == {*losses, "total"}
    assert all(made[name].shape == () for name in made)
    torch.testing.assert_close({name: made[name] for name in losses}, losses)
    torch.testing.assert_close(made["total"], sum(losses.values()))
    made["total"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@torch.inference_mode()
def test_features_can_be_kept_image_by_image(method, draw):
    images = draw(3)
    for modality in ("sketch", "photo"):
        together = method.encode(images, modality)
        assert together["retrieval"].dim() == 2
        for name, features in together.items():
            assert len(features) == 3, name
            alone = torch.cat([method.encode(image[None], modality)[name] for image in images])
            torch.testing.assert_close(alone, features, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_similarities_are_queries_by_gallery(method, draw):
    queries = method.encode(draw(2), "sketch")
    gallery = method.encode(draw(3, seed=1), "photo")
    kinds = [method.similarity]
    if method.pair_scorer is not None:
        kinds.append(method.pair_similarity)
    for similarity in kinds:
        made = similarity(queries, gallery)
        assert made.shape == (2, 3)
        assert made.isfinite().all()
        assert made.unique().numel() == 6


@torch.inference_mode()
def test_scores_of_pairs_read_the_features_that_the_method_names(method, draw):
    queries = method.encode(draw(2), "sketch")
    gallery = method.encode(draw(3, seed=1), "photo")
    if method.pair_scorer is None:
        assert method.pair_features == ()
        return
    named = {"retrieval", *method.pair_features}
    assert named <= queries.keys() == gallery.keys()
    some = [{name: side[name] for name in named} for side in (queries, gallery)]
    assert torch.equal(method.pair_similarity(*some), method.pair_similarity(queries, gallery))


def test_methods_with_and_without_scores_of_pairs_are_tested():
    """Else the tests before this one would show nothing."""
    assert Bare.pair_scorer is None
    assert ZSE.pair_scorer is not None


@torch.inference_mode()
def test_nothing_is_closer_than_the_image_itself(method, draw):
    features = method.encode(draw(3), "photo")
    assert method.similarity(features, features).argmax(dim=1).tolist() == [0, 1, 2]


@torch.inference_mode()
def test_settings_rebuild_an_identical_model(method, draw, checkpoint_of, tmp_path):
    kept = method.settings.of_model()
    assert json.loads(json.dumps(kept)) == kept
    other = build_model(replace(settings_class(method.name)(), **kept))
    assert other.settings.of_model() == kept
    assert other.inputs == method.inputs
    torch.save(checkpoint_of(method), tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth")
    made = loaded.encode(draw(1), "sketch")
    torch.testing.assert_close(made, method.encode(draw(1), "sketch"), rtol=0, atol=0)


@torch.inference_mode()
def test_what_only_training_uses_is_not_needed_to_encode(method, draw, checkpoint_of, tmp_path):
    checkpoint = checkpoint_of(method)
    for name in method.state_dict():
        if name.startswith(method.training_only):
            del checkpoint["model"][name]
    torch.save(checkpoint, tmp_path / "file.pth")
    made = load_model(tmp_path / "file.pth")[0].encode(draw(1), "sketch")
    torch.testing.assert_close(made, method.encode(draw(1), "sketch"), rtol=0, atol=0)


def test_settings_of_training_change_no_model(build):
    """Only fields with `rebuilds` may: a checkpoint holds no others."""
    method, kept = build(), build().settings.of_model()
    training_only = {n for n in method.state_dict() if n.startswith(method.training_only)}
    plain = build_model(replace(settings_class(method.name)(), **kept))
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    trained = {name: tensor.shape for name, tensor in method.state_dict().items()}
    assert {n: shape for n, shape in trained.items() if n not in training_only} == shapes


def test_another_file_is_no_published_checkpoint_of_the_method(method):
    for content in ({}, {"model": {}}, {"model": {"weight": torch.zeros(1)}}, {"epoch": 3}):
        assert type(method).from_published(content, "file", {}) is None


def test_inputs_are_a_preprocessing(method):
    assert {"size", "mean", "std", "crop"} <= set(method.inputs)
    assert set(method.inputs) <= {field.name for field in dataclasses.fields(Preprocessing)}
    Preprocessing(**method.inputs)
    assert method.inputs["size"] > 0
    assert len(method.inputs["mean"]) == len(method.inputs["std"]) == 3


def test_batches_are_of_a_known_kind(method):
    assert method.batches in BATCHES


def test_parameter_groups_hold_every_parameter_that_learns_once(build):
    method = build(learning_rate=1e-5, layer_decay=0.75, new_rate=10.0)
    grouped = [id(p) for group in method.parameter_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    torch.optim.AdamW(method.parameter_groups(), lr=1e-5)


def test_what_training_calls_can_be_called(method):
    method.before_training()
    method.after_step(1)


def test_computing_blocks_again_changes_nothing_to_the_bit_and_keeps_less(build, batch):
    """With dropout on, which must draw the same on the way back."""
    dropout = {"dropout": 0.2} if "dropout" in options_of(type(build().settings)) else {}
    results = []
    for again in (False, True):
        trained = build(**dropout).train()
        if again:
            try:
                trained.checkpoint_blocks()
            except InputError as error:
                assert f"{trained.name} has no blocks" in str(error)
                return
        torch.manual_seed(5)
        kept = Kept()
        with kept:
            losses = trained(batch, 0.5)
        after = torch.rand(())  # a step draws as much
        losses["total"].backward()
        found = {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}
        results.append((losses, found, after, kept.numbers))
    (*plain, kept_in_plain), (*again, kept_in_again) = results
    torch.testing.assert_close(again, plain, rtol=0, atol=0)
    assert sum(bool(gradient.any()) for gradient in plain[1].values()) > len(plain[1]) / 2
    assert kept_in_again < 0.75 * kept_in_plain


def test_a_method_without_blocks_refuses_to_compute_them_again():
    with pytest.raises(InputError, match="--checkpoint_blocks: bare has no blocks"):
        Bare(BareSettings()).checkpoint_blocks()
