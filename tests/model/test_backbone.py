"""Pretrained weights into the tokenizer: which files are accepted, and that they still compute."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model import build_model
from model.zse.published import to_published
from model.zse.settings import ZSESettings
from utils.errors import InputError


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_starts_unharmed_from_a_timm_file(suffix, tmp_path, timm_vit, draw_images):
    vit, path = timm_vit(), tmp_path / f"file{suffix}"
    assert "head.weight" in vit.state_dict()
    (save_file if suffix == ".safetensors" else torch.save)(vit.state_dict(), path)
    _assert_computes_the_same(_load_pretrained(path), vit, draw_images(2))


def test_starts_unharmed_from_a_file_as_published(tmp_path, timm_vit, draw_images):
    vit = timm_vit()
    torch.save(_as_published_backbone(vit), tmp_path / "file.pth")
    _assert_computes_the_same(_load_pretrained(tmp_path / "file.pth"), vit, draw_images(2))


def test_starts_unharmed_from_a_half_precision_file(tmp_path, timm_vit, draw_images):
    half = {name: tensor.half() for name, tensor in timm_vit().state_dict().items()}
    vit = timm_vit()
    vit.load_state_dict(half)
    torch.save(half, tmp_path / "file.pth")
    method = _load_pretrained(tmp_path / "file.pth")
    assert all(parameter.dtype == torch.float32 for parameter in method.parameters())
    _assert_computes_the_same(method, vit, draw_images(2))


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_starts_unharmed_from_a_wrapped_file(wrapper, tmp_path, timm_vit, draw_images):
    vit = timm_vit()
    state = {f"module.{name}": tensor for name, tensor in vit.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "file.pth")
    _assert_computes_the_same(_load_pretrained(tmp_path / "file.pth"), vit, draw_images(2))


def test_a_file_with_a_scale_stem_is_loaded_as_it_is(tmp_path, build_small, as_downloaded):
    trained = build_small(seed=3)
    whole = as_downloaded(trained)["model"]
    tokenizer = {n: t for n, t in whole.items() if n.startswith("module.sa.model.")}
    torch.save(tokenizer, tmp_path / "file.pth")
    method = _load_pretrained(tmp_path / "file.pth")
    for name, tensor in trained.tokenizer.state_dict().items():
        assert torch.equal(method.tokenizer.state_dict()[name], tensor), name


def test_a_whole_checkpoint_is_no_backbone(tmp_path, build_small, as_downloaded):
    torch.save(as_downloaded(build_small()), tmp_path / "file.pth")
    with pytest.raises(InputError, match="--load"):
        _load_pretrained(tmp_path / "file.pth")


def test_the_scale_stem_learns_from_the_first_step(tmp_path, timm_vit, draw_images):
    torch.save(timm_vit().state_dict(), tmp_path / "file.pth")
    tokenizer = _load_pretrained(tmp_path / "file.pth").tokenizer
    last = tokenizer.scale_stem.convolutions[-1].weight
    assert not last.any()
    tokenizer(draw_images(1))[0, 0, :8].sum().backward()
    assert last.grad.any()


def test_a_file_of_another_vit_is_refused_by_name(tmp_path, timm_vit):
    state = timm_vit().state_dict()
    del state["blocks.5.norm1.weight"]
    state["blocks.6.norm1.weight"] = torch.zeros(64)
    state["pos_embed"] = torch.zeros(1, 197, 64)
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(InputError) as error:
        _load_pretrained(tmp_path / "file.pth")
    assert "missing: vit.blocks.5.norm1.weight;" in str(error.value)
    assert "unexpected: vit.blocks.6.norm1.weight;" in str(error.value)
    assert "vit.pos_embed is (1, 197, 64) and should be (1, 101, 64)" in str(error.value)


def _load_pretrained(path):
    torch.manual_seed(2)
    method = build_model(ZSESettings(vit="test_vit"))
    assert method.load_pretrained(path) == str(path)
    return method.eval()


def _assert_computes_the_same(method, vit: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        made = method.tokenizer(images)
        torch.testing.assert_close(made, vit.forward_features(images), rtol=0, atol=1e-5)


def _as_published_backbone(vit: nn.Module) -> dict:
    """Published names: flat, with a classifier, without a scale stem."""
    ours = {f"tokenizer.vit.{n}": t for n, t in vit.state_dict().items() if "head." not in n}
    settings = {"downsampling": "published", "anchors": 25, "keep_rate": 1}
    checkpoint = {"model": ours, "settings": settings, "epoch": 0}
    theirs = to_published({**checkpoint, "map_all": 0, "precision_100": 0})["model"]
    flat = {name.removeprefix("sa.model."): tensor for name, tensor in theirs.items()}
    assert {"cls", "pos_embedding", "embedding.weight"} < set(flat)
    return {**flat, "mlp_head.0.weight": torch.ones(10, 64), "mlp_head.0.bias": torch.ones(10)}
