"""The tokenizer against slow loops: stems, token selection, and which ViTs are accepted."""

import pytest
import torch
from saved_tensors import Kept
from torch import nn

from model.zse.tokenizer import (
    ScaleStem,
    Tokenizer,
    class_attention,
    keep_attended,
    kept_count,
)
from utils.errors import InputError

SELECTING = {"keep_rate": 0.86}  # 100 tokens > 86 > 74 > 64


# ---- the network


def test_the_stems_are_averaged(build_small, timm_vit, draw_images):
    """Against timm's ViT whose patch embedding computes the mean of both stems."""
    tokenizer = build_small().tokenizer
    vit = timm_vit(num_classes=0)
    vit.load_state_dict(tokenizer.vit.state_dict())
    images = draw_images(2)
    with torch.no_grad():
        mean = (vit.patch_embed.proj(images) + tokenizer.scale_stem(images)) / 2
        vit.patch_embed.proj.forward = lambda _: mean
        torch.testing.assert_close(tokenizer(images), vit.forward_features(images))


def test_norms_have_the_published_eps():
    norms = [m for m in _tiny().modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * 12 + 1
    assert {norm.eps for norm in norms} == {1e-5}


def test_dropout_is_where_it_was_published():
    vit = _tiny(dropout=0.125).vit
    assert vit.pos_drop.p == 0.125
    for block in vit.blocks:
        assert block.attn.attn_drop.p == 0
        assert (block.attn.proj_drop.p, block.mlp.drop1.p, block.mlp.drop2.p) == (0.125,) * 3


@pytest.mark.parametrize(
    ("patch", "widths"),
    [(8, [3, 64, 128, 48]), (16, [3, 64, 128, 256, 48]), (32, [3, 64, 128, 256, 512, 48])],
)
def test_scale_stem_makes_one_vector_a_patch(patch, widths):
    stem = ScaleStem(48, patch)
    assert stem(torch.zeros(2, 3, 2 * patch, 3 * patch)).shape == (2, 48, 2, 3)
    shapes = [tuple(convolution.weight.shape) for convolution in stem.convolutions]
    kernels = [7] + [3] * (len(widths) - 2)
    assert shapes == [
        (after, before, kernel, kernel)
        for before, after, kernel in zip(widths[:-1], widths[1:], kernels, strict=True)
    ]
    assert all(convolution.bias is None for convolution in stem.convolutions)


def test_scale_stem_is_four_convolutions_with_relu_between():
    torch.manual_seed(0)
    stem = ScaleStem(48, 16)
    images = torch.randn(1, 3, 32, 32)
    a, b, c, d = (convolution.weight for convolution in stem.convolutions)
    x = torch.relu(nn.functional.conv2d(images, a, stride=2, padding=3))
    x = torch.relu(nn.functional.conv2d(x, b, stride=2, padding=1))
    x = torch.relu(nn.functional.conv2d(x, c, stride=2, padding=1))
    x = nn.functional.conv2d(x, d, stride=2, padding=1)
    torch.testing.assert_close(stem(images), x)
    assert (x < 0).any()


# ---- token selection


def test_counts_of_the_paper():
    counts = [196]
    for _ in range(3):
        counts.append(kept_count(counts[-1], 0.9))
    assert counts == [196, 177, 160, 144]


def test_a_share_that_is_a_whole_number_of_tokens_keeps_that_number():
    for tokens in range(1, 257):
        for kept in range(1, tokens + 1):
            assert kept_count(tokens, kept / tokens) == kept


def test_the_selecting_blocks_are_4_7_and_10_of_12():
    assert [number + 1 for number in _tiny(keep_rate=0.9).selecting] == [4, 7, 10]


def test_a_real_vit_keeps_144_patches_and_the_class_token(draw_images):
    tokenizer = _tiny(keep_rate=0.9).eval()
    counts = []
    for block in tokenizer.vit.blocks:
        block.mlp.register_forward_hook(lambda module, given, made: counts.append(made.shape[1]))
    with torch.inference_mode():
        tokens = tokenizer(draw_images(1, size=224))
    assert tokens.shape == (1, 145, 192)
    assert tokenizer.tokens == 144
    assert counts == [197] * 3 + [178] * 3 + [161] * 3 + [145] * 3


def test_keep_rate_1_is_no_selection_to_the_bit(build_small, draw_images):
    tokenizer = build_small().tokenizer
    assert tokenizer.selecting == []
    with torch.inference_mode():
        wanted = tokenizer(draw_images(2))
        tokenizer.selecting = [1, 3, 4]
        assert torch.equal(tokenizer(draw_images(2)), wanted)


def test_keep_attended_with_rate_1_changes_nothing():
    x, attention = torch.randn(3, 11, 5), torch.rand(3, 10)
    assert torch.equal(keep_attended(x, attention, 1.0), x)


def test_class_attention_is_the_softmaxed_row_of_the_whole_matrix(build_small):
    attention = build_small().tokenizer.vit.blocks[0].attn
    normed = torch.randn(3, 17, 64)
    plain = torch.stack([_attend_by_hand(attention, image) for image in normed])
    torch.testing.assert_close(class_attention(attention, normed), plain)


def test_class_attention_without_qkv_bias(build_small):
    attention = build_small().tokenizer.vit.blocks[0].attn
    attention.qkv.bias = None
    normed = torch.randn(2, 5, 64)
    plain = torch.stack([_attend_by_hand(attention, image) for image in normed])
    torch.testing.assert_close(class_attention(attention, normed), plain)


@pytest.mark.parametrize("keep_rate", [0.05, 0.5, 0.9])
def test_kept_tokens_are_each_images_most_attended_in_their_order(keep_rate):
    torch.manual_seed(0)
    x, attention = torch.randn(4, 31, 6), torch.rand(4, 30)
    kept = keep_attended(x, attention, keep_rate)
    wanted = [_keep_by_hand(tokens, a, keep_rate) for tokens, a in zip(x, attention, strict=True)]
    assert torch.equal(kept, torch.stack(wanted))
    assert len({tuple(tokens[1:, 0].tolist()) for tokens in kept - x[:, :1]}) == 4


def test_selection_stands_between_attention_and_mlp(build_small, draw_images):
    """A whole forward pass, image by image, against the rule written out."""
    tokenizer = build_small(**SELECTING).tokenizer
    images, vit = draw_images(3), tokenizer.vit
    with torch.inference_mode():
        fast = tokenizer(images)
        for image, result in zip(images, fast, strict=True):
            stems = (vit.patch_embed.proj(image[None]) + tokenizer.scale_stem(image[None])) / 2
            x = torch.cat([vit.cls_token[0], stems[0].flatten(1).T]) + vit.pos_embed[0]
            for number, block in enumerate(vit.blocks):
                attention = _attend_by_hand(block.attn, block.norm1(x))
                x = x + block.attn(block.norm1(x)[None])[0]
                if number + 1 in (2, 4, 5):  # of 6: after a quarter, half and three quarters
                    x = _keep_by_hand(x, attention, 0.86)
                x = x + block.mlp(block.norm2(x))
            assert len(x) == 1 + 64
            torch.testing.assert_close(result, vit.norm(x), rtol=1e-4, atol=1e-5)


# ---- blocks computed again


@pytest.mark.parametrize("keep_rate", [1, 0.9])
def test_blocks_computed_again_give_the_same_gradient_to_the_bit(keep_rate, draw_images):
    """With dropout on, and where blocks leave tokens out."""
    images, results = draw_images(1, size=224), []
    for again in (False, True):
        tokenizer = _tiny(keep_rate, dropout=0.2).train()
        tokenizer.checkpointing = again
        torch.manual_seed(3)
        kept = Kept()
        with kept:
            tokens = tokenizer(images)
        tokens.square().sum().backward()
        gradients = {name: p.grad for name, p in tokenizer.named_parameters()}
        results.append((tokens, gradients, torch.rand(()), kept.numbers))
    (*plain, kept_in_plain), (*again, kept_in_again) = results
    torch.testing.assert_close(again, plain, rtol=0, atol=0)
    assert all(gradient.any() for gradient in plain[1].values())
    assert kept_in_again < 0.4 * kept_in_plain  # the stems' remain


def test_without_a_gradient_no_block_is_computed_again(build_small, draw_images, monkeypatch):
    tokenizer = build_small().tokenizer
    tokenizer.checkpointing = True

    def fail(*_, **__):
        raise AssertionError("is called")

    monkeypatch.setattr("model.zse.tokenizer.checkpoint", fail)
    with torch.no_grad():
        tokenizer(draw_images(1))
    with pytest.raises(AssertionError, match="is called"):
        tokenizer(draw_images(1))


# ---- depth


def test_layers_above_every_parameter():
    with torch.device("meta"):
        tokenizer = _tiny()
    wanted = {"vit.norm.": 0, **{f"vit.blocks.{i}.": 12 - i for i in range(12)}}
    embeddings = ("vit.cls_token", "vit.pos_embed", "vit.patch_embed.", "scale_stem.")
    wanted |= dict.fromkeys(embeddings, 13)
    counted = dict.fromkeys(wanted, 0)
    for name, _ in tokenizer.named_parameters():
        (beginning,) = [b for b in wanted if name.startswith(b)]
        counted[beginning] += 1
        assert tokenizer.layers_above(name) == wanted[beginning], name
    assert all(counted.values())


# ---- which ViTs


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("test_vit", id="160 px"),
        pytest.param("vit_small_patch8_224", id="8 px patches"),
        pytest.param("vit_small_patch32_224", id="32 px patches"),
        pytest.param("vit_tiny_patch16_384", id="384 px"),
    ],
)
def test_plain_vits_are_accepted(name):
    with torch.device("meta"):
        tokenizer = Tokenizer(vit=name, keep_rate=1, dropout=0)
        side = tokenizer.vit.patch_embed.img_size[0]
        tokens = tokenizer(torch.zeros(1, 3, side, side))
    assert tokens.shape == (1, 1 + tokenizer.tokens, tokenizer.width)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("resnet18", id="a CNN"),
        pytest.param("swin_tiny_patch4_window7_224", id="another transformer"),
        pytest.param("vit_small_patch14_reg4_dinov2", id="register tokens"),
        pytest.param("deit_tiny_distilled_patch16_224", id="a distillation token"),
        pytest.param("test_vit2", id="a register in place of the class token"),
        pytest.param("vit_base_patch16_clip_224", id="a norm before the blocks"),
        pytest.param("vit_small_patch14_dinov2", id="14 px patches"),
        pytest.param("vit_small_patch16_18x2_224", id="parallel blocks"),
        pytest.param("vit_tiny_r_s16_p8_224", id="convolutions for patches"),
        pytest.param("no_such_model", id="an unknown name"),
        pytest.param("vit_tiny_patch16_224.no_such_tag", id="an unknown tag"),
        pytest.param("timm/no_such_model", id="a name with its publisher"),
        pytest.param("", id="an empty name"),
    ],
)
def test_what_is_no_plain_vit_is_refused(name):
    with torch.device("meta"), pytest.raises(InputError, match="^" + name):
        Tokenizer(vit=name, keep_rate=1, dropout=0)


def _tiny(keep_rate: float = 1, dropout: float = 0) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(vit="vit_tiny_patch16_224", keep_rate=keep_rate, dropout=dropout)


def _attend_by_hand(attention: nn.Module, normed: torch.Tensor) -> torch.Tensor:
    """Mean over heads of the class token's attention to each patch of one image: (N,)."""
    heads, width = attention.num_heads, normed.shape[-1]
    each = width // heads
    query, key, _ = attention.qkv(normed).split(width, dim=-1)
    of_heads = []
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        matrix = (query[:, part] @ key[:, part].T / each**0.5).softmax(dim=-1)
        of_heads.append(matrix[0, 1:])
    return sum(of_heads) / heads


def _keep_by_hand(x: torch.Tensor, attention: torch.Tensor, keep_rate: float) -> torch.Tensor:
    """One image: the class token, then the most attended patches as they stood."""
    count = kept_count(len(attention), keep_rate)
    best = sorted(range(len(attention)), key=lambda patch: -attention[patch].item())[:count]
    return torch.stack([x[0]] + [x[1 + patch] for patch in sorted(best)])
