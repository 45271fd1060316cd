"""What every method of the table must keep to."""

import dataclasses
import importlib
import json

import pytest
import torch
from saved_tensors import Kept

from datasets.images import Preprocessing
from model import METHODS, build_model, load_model
from model.method import Method
from training.batches import BATCHES
from utils.errors import InputError

SMALL = {
    "zse_sbir": [
        {"vit": "test_vit"},
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
            "classes": 3,
            "distillation_weight": 1.0,
        },
    ]
}
"""Settings that make each method small; several for one that can be very different things."""


@pytest.fixture(params=[(name, settings) for name in SMALL for settings in SMALL[name]])
def method(request) -> Method:
    name, settings = request.param
    torch.manual_seed(0)
    return build_model(name, **settings).eval()


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
    assert set(SMALL) == set(METHODS)


def test_is_what_the_table_says(method):
    module, name = METHODS[method.name].split(":")
    assert type(method) is getattr(importlib.import_module(module), name)
    assert isinstance(method, Method)


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
    kinds = [method.similarity, method.pair_similarity]
    for similarity in filter(None, kinds):
        made = similarity(queries, gallery)
        assert made.shape == (2, 3)
        assert made.isfinite().all()
        assert made.unique().numel() == 6


@torch.inference_mode()
def test_nothing_is_closer_than_the_image_itself(method, draw):
    features = method.encode(draw(3), "photo")
    assert method.similarity(features, features).argmax(dim=1).tolist() == [0, 1, 2]


@torch.inference_mode()
def test_settings_rebuild_an_identical_model(method, draw, checkpoint_of, tmp_path):
    assert json.loads(json.dumps(method.settings)) == method.settings
    other = build_model(method.name, **method.settings)
    assert other.settings == method.settings
    assert other.inputs == method.inputs
    torch.save(checkpoint_of(method), tmp_path / "file.pth")
    loaded, _ = load_model(tmp_path / "file.pth")
    made = loaded.eval().encode(draw(1), "sketch")
    torch.testing.assert_close(made, method.encode(draw(1), "sketch"), rtol=0, atol=0)


def test_inputs_are_a_preprocessing(method):
    assert {"size", "mean", "std", "crop"} <= set(method.inputs)
    assert set(method.inputs) <= {field.name for field in dataclasses.fields(Preprocessing)}
    Preprocessing(**method.inputs)
    assert method.inputs["size"] > 0
    assert len(method.inputs["mean"]) == len(method.inputs["std"]) == 3


def test_batches_are_of_a_known_kind(method):
    assert method.batches in BATCHES


def test_parameter_groups_hold_every_parameter_that_learns_once(method):
    recipe = {"learning_rate": 1e-5, "layer_decay": 0.75, "new_rate": 10.0}
    grouped = [id(p) for group in method.parameter_groups(recipe) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    torch.optim.AdamW(method.parameter_groups(recipe), lr=1e-5)


def test_what_training_calls_can_be_called(method):
    method.before_training()
    method.after_step(1)


def test_computing_blocks_again_changes_nothing_to_the_bit_and_keeps_less(method, batch):
    """With dropout on, which must draw the same on the way back."""
    results = []
    for again in (False, True):
        torch.manual_seed(0)
        trained = build_model(method.name, **{**method.settings, "dropout": 0.2}).train()
        if again:
            try:
                trained.checkpoint_blocks()
            except InputError:
                pytest.skip(f"{method.name} has no blocks to compute again")
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


def test_a_method_without_blocks_says_so():
    class Bare(Method):
        name, settings, inputs, batches = "bare", {}, {}, "triplets"

        def losses(self, batch, progress):
            return {}

        def encode(self, images, modality):
            return {}

        def load_pretrained(self, path):
            return ""

    with pytest.raises(InputError, match="--checkpoint_blocks: bare has no blocks"):
        Bare().checkpoint_blocks()
