"""Pretrained weights into the tokenizer: which files are accepted, and that they still compute."""

import numpy as np
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


@pytest.mark.parametrize(
    "prefix", ["model.", "_orig_mod.model.", "module._orig_mod.", "backbone.", "net.encoder."]
)
def test_starts_unharmed_from_names_with_a_prefix(prefix, tmp_path, timm_vit, draw_images, caplog):
    """As torch.compile and Lightning write them, here beside a projection head."""
    vit = timm_vit()
    state = {f"{prefix}{name}": tensor for name, tensor in vit.state_dict().items()}
    state["projector.weight"] = torch.ones(3)
    torch.save({"state_dict": state, "pytorch-lightning_version": "2"}, tmp_path / "file.pth")
    with caplog.at_level("INFO"):
        method = _load_pretrained(tmp_path / "file.pth")
    _assert_computes_the_same(method, vit, draw_images(2))
    assert "left out what is not of the backbone: projector.weight" in caplog.text


def test_starts_unharmed_from_a_masked_autoencoder(tmp_path, timm_vit, draw_images):
    vit = timm_vit()
    decoder = {"mask_token": torch.ones(1, 1, 9), "decoder_pos_embed": torch.ones(1, 101, 9)}
    decoder["decoder_blocks.0.norm1.weight"] = torch.ones(9)
    torch.save({"model": vit.state_dict() | decoder}, tmp_path / "file.pth")
    _assert_computes_the_same(_load_pretrained(tmp_path / "file.pth"), vit, draw_images(2))


def test_a_distilled_network_is_refused_with_what_to_take(tmp_path, timm_vit):
    state = timm_vit().state_dict() | {"dist_token": torch.ones(1, 1, 64)}
    torch.save({"model": state}, tmp_path / "file.pth")
    with pytest.raises(InputError, match=r"distilled DeiT.*without distillation\."):
        _load_pretrained(tmp_path / "file.pth")


@pytest.mark.parametrize("apart", [True, False])
def test_a_student_and_its_teacher_are_named(apart, tmp_path, timm_vit):
    state = timm_vit().state_dict()
    both = {name: {f"backbone.{n}": t for n, t in state.items()} for name in ("student", "teacher")}
    if not apart:
        both = {f"{name}.{n}": t for name, tensors in both.items() for n, t in tensors.items()}
    torch.save(both, tmp_path / "file.pth")
    with pytest.raises(InputError, match=r"several networks: student.*teacher"):
        _load_pretrained(tmp_path / "file.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value, tmp_path, timm_vit):
    state = timm_vit().state_dict()
    state["blocks.2.norm1.bias"][3] = value
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(InputError, match=r"the tensor vit\.blocks\.2\.norm1\.bias holds numbers"):
        _load_pretrained(tmp_path / "file.pth")


# ---- Google's .npz


def _as_googles(vit: nn.Module) -> dict[str, np.ndarray]:
    """The names and shapes of Google's own files."""
    state = {name: tensor.numpy() for name, tensor in vit.state_dict().items()}
    heads, width = vit.blocks[0].attn.num_heads, vit.embed_dim
    found = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": np.zeros((width, 10), np.float32),
    }
    for number in range(len(vit.blocks)):
        ours, theirs = f"blocks.{number}.", f"Transformer/encoderblock_{number}/"
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            found[f"{theirs}{name}/scale"] = state[f"{ours}{norm}.weight"]
            found[f"{theirs}{name}/bias"] = state[f"{ours}{norm}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        weights = np.split(state[f"{ours}attn.qkv.weight"], 3)
        biases = np.split(state[f"{ours}attn.qkv.bias"], 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            found[f"{attention}{name}/kernel"] = weight.T.reshape(width, heads, -1)
            found[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        out = state[f"{ours}attn.proj.weight"].T.reshape(heads, -1, width)
        found[f"{attention}out/kernel"] = out
        found[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
        for i in (0, 1):
            dense = f"{theirs}MlpBlock_3/Dense_{i}/"
            found[f"{dense}kernel"] = state[f"{ours}mlp.fc{i + 1}.weight"].T
            found[f"{dense}bias"] = state[f"{ours}mlp.fc{i + 1}.bias"]
    return found


def test_starts_unharmed_from_googles_own_file(tmp_path, timm_vit, draw_images):
    vit = timm_vit(num_classes=0)
    np.savez(tmp_path / "B_16.npz", **_as_googles(vit))
    _assert_computes_the_same(_load_pretrained(tmp_path / "B_16.npz"), vit, draw_images(2))


def test_googles_file_of_another_vit_is_refused_with_its_measures(tmp_path, timm_vit):
    arrays = _as_googles(timm_vit(num_classes=0))
    less = {name: array for name, array in arrays.items() if "block_5" not in name}
    np.savez(tmp_path / "B_16.npz", **less)
    with pytest.raises(InputError, match="holds a ViT of 5 blocks, width 64 and patches of 16 px"):
        _load_pretrained(tmp_path / "B_16.npz")


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "lacking", "objects", "others"])
def test_a_damaged_file_of_google_is_one_sentence(damage, tmp_path, timm_vit):
    arrays, path = _as_googles(timm_vit(num_classes=0)), tmp_path / "B_16.npz"
    if damage == "lacking":
        del arrays["Transformer/encoderblock_3/MlpBlock_3/Dense_0/bias"]
    if damage == "objects":
        arrays["cls"] = np.array([print, None], dtype=object)
    if damage == "others":
        arrays = {"a": np.zeros(3)}
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= damage == "flipped"
    path.write_bytes({"cut": content[:-9], "text": b"text"}.get(damage, content))
    with pytest.raises(InputError, match=r"B_16\.npz: cannot be read as a checkpoint: it is "):
        _load_pretrained(path)


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
