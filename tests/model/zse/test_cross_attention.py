"""Cross-attention and its norm against the rule written out."""

import math

import pytest
import torch
from saved_tensors import Kept
from torch import nn

from model.zse.cross_attention import CrossAttention, CrossAttentionLayer, UnbiasedLayerNorm

WIDTH, HEADS, HIDDEN = 12, 3, 20


# ---- layers and pairs


@pytest.mark.parametrize("layers", [1, 2])
def test_equals_the_rule_written_out_token_by_token(layers):
    attention = _build(layers)
    sketch, photo = torch.randn(2, 5, WIDTH), torch.randn(2, 5, WIDTH)
    with torch.inference_mode():
        made = attention(sketch, photo)
        for pair in range(2):
            wanted = sketch[pair], photo[pair]
            for of_sketch, of_photo in zip(
                attention.sketch_layers, attention.photo_layers, strict=True
            ):
                before_sketch, before_photo = wanted
                wanted = (
                    _layer_by_hand(of_sketch, before_sketch, before_photo),
                    _layer_by_hand(of_photo, before_photo, before_sketch),
                )
            torch.testing.assert_close((made[0][pair], made[1][pair]), wanted)


def test_values_come_from_the_side_itself():
    """With one and the same own token at every place, no other side can change anything."""
    layer = _build(1).sketch_layers[0]
    own = torch.randn(1, 1, WIDTH).expand(1, 4, WIDTH)
    with torch.inference_mode():
        made = layer(own, torch.randn(1, 4, WIDTH))
        torch.testing.assert_close(made, layer(own, torch.randn(1, 4, WIDTH)))
        mixed = torch.randn(1, 4, WIDTH)
        a, b = layer(mixed, torch.randn(1, 4, WIDTH)), layer(mixed, torch.randn(1, 4, WIDTH))
        assert not torch.allclose(a, b, atol=1e-3)


def test_both_sides_read_the_other_as_it_was():
    attention = _build(1)
    sketch, photo = torch.randn(1, 4, WIDTH), torch.randn(1, 4, WIDTH)
    with torch.inference_mode():
        crossed_sketch, crossed_photo = attention(sketch, photo)
        assert torch.equal(crossed_photo, attention.photo_layers[0](photo, sketch))
        assert not torch.allclose(
            crossed_photo, attention.photo_layers[0](photo, crossed_sketch), atol=1e-3
        )


def test_pairs_do_not_look_at_each_other():
    attention = _build(2)
    sketch, photo = torch.randn(3, 4, WIDTH), torch.randn(3, 4, WIDTH)
    with torch.inference_mode():
        together = attention(sketch, photo)
        for pair in range(3):
            alone = attention(sketch[pair : pair + 1], photo[pair : pair + 1])
            torch.testing.assert_close(
                (together[0][pair], together[1][pair]), (alone[0][0], alone[1][0])
            )


@pytest.mark.parametrize("layers", [1, 2])
def test_given_pairs_equal_each_pair_alone(layers):
    attention = _build(layers)
    sketch, photo = torch.randn(3, 4, WIDTH), torch.randn(4, 4, WIDTH)
    of_sketch, of_photo = torch.tensor([2, 0, 2, 1, 2]), torch.tensor([1, 1, 3, 1, 0])
    with torch.inference_mode():
        together = attention(sketch, photo, (of_sketch, of_photo))
        for pair, (s, p) in enumerate(zip(of_sketch, of_photo, strict=True)):
            alone = attention(sketch[s][None], photo[p][None])
            torch.testing.assert_close(
                (together[0][pair], together[1][pair]), (alone[0][0], alone[1][0])
            )


def test_no_pairs_are_sketch_i_with_photo_i():
    attention = _build(2)
    sketch, photo = torch.randn(3, 4, WIDTH), torch.randn(3, 4, WIDTH)
    with torch.inference_mode():
        paired = attention(sketch, photo, (torch.arange(3), torch.arange(3)))
        torch.testing.assert_close(attention(sketch, photo), paired, rtol=0, atol=0)


def test_an_image_of_many_pairs_is_projected_once():
    attention, projected = _build(1), {}
    for side, layer in (
        ("sketch", attention.sketch_layers[0]),
        ("photo", attention.photo_layers[0]),
    ):
        for name in ("query", "key", "value", "out"):

            def count(module, given, made, key=(side, name)):
                projected[key] = len(made)

            getattr(layer, name).register_forward_hook(count)
    pairs = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 2])
    attention(torch.randn(2, 4, WIDTH), torch.randn(3, 4, WIDTH), pairs)
    own = {"sketch": 2, "photo": 3}
    for side, other in (("sketch", "photo"), ("photo", "sketch")):
        assert projected[side, "query"] == projected[side, "value"] == own[side]
        assert projected[side, "key"] == own[other]
        assert projected[side, "out"] == 6


# ---- started as the identity


@pytest.mark.parametrize("layers", [1, 2])
def test_started_as_identity_it_hands_on_the_normalised_own_tokens(layers):
    attention = _untrained(layers)
    sketch, photo = 3 * torch.randn(2, 4, WIDTH) + 1, torch.randn(2, 4, WIDTH) - 2
    with torch.inference_mode():
        before = attention(sketch, photo)
        attention.start_as_identity()
        made = attention(sketch, photo)
    for tokens, at_random, crossed in zip((sketch, photo), before, made, strict=True):
        wanted = torch.stack([_norm_by_hand(UnbiasedLayerNorm(WIDTH), image) for image in tokens])
        torch.testing.assert_close(crossed, wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(at_random, wanted, atol=0.1)


def test_started_as_identity_it_learns_from_the_first_step():
    attention = _untrained(1)
    attention.start_as_identity()
    optimizer = torch.optim.SGD(attention.parameters(), lr=0.1)
    sketch, photo = torch.randn(2, 4, WIDTH), torch.randn(2, 4, WIDTH)
    for _ in range(2):
        optimizer.zero_grad()
        sum(side[..., 0].square().sum() for side in attention(sketch, photo)).backward()
        optimizer.step()
    for name, parameter in attention.named_parameters():
        if not name.endswith("key.bias"):  # shifts all logits of a query alike
            assert parameter.grad.any(), name


# ---- norm


def test_norm_divides_by_the_unbiased_deviation_plus_eps():
    norm = UnbiasedLayerNorm(4)
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        norm.shift.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    # mean 2, squares 4 + 0 + 0 + 4 over 4 - 1
    deviation = math.sqrt(8 / 3) + 1e-6
    wanted = torch.tensor([-2 / deviation, 0.0, 1.0, 1 + 4 * 2 / deviation])
    torch.testing.assert_close(norm(torch.tensor([0.0, 2.0, 2.0, 4.0])), wanted)


def test_norm_of_tiny_values_tells_where_eps_stands():
    x = torch.tensor([0.0, 2e-6])  # std sqrt(2) * 1e-6
    wanted = torch.tensor([-1.0, 1.0]) / (math.sqrt(2) + 1)
    torch.testing.assert_close(UnbiasedLayerNorm(2)(x), wanted)


def test_norm_of_equal_values_is_the_shift():
    assert torch.equal(UnbiasedLayerNorm(3)(torch.ones(2, 3)), torch.zeros(2, 3))


# ---- dropout


def test_dropout_acts_in_training_only():
    attention = _build(1, dropout=0.5)
    tokens = torch.randn(1, 4, WIDTH), torch.randn(1, 4, WIDTH)
    with torch.inference_mode():
        assert torch.equal(attention(*tokens)[0], attention(*tokens)[0])
        attention.train()
        assert not torch.equal(attention(*tokens)[0], attention(*tokens)[0])


def test_dropout_falls_on_both_sublayers_and_inside_the_second(monkeypatch):
    layer = _build(1, dropout=0.25).sketch_layers[0].train()
    seen = []

    def record(x, p, training):
        seen.append((x.shape[-1], p, training))
        return x

    monkeypatch.setattr(torch.nn.functional, "dropout", record)
    layer(torch.randn(1, 4, WIDTH), torch.randn(1, 4, WIDTH))
    assert seen == [(WIDTH, 0.25, True), (HIDDEN, 0.25, True), (WIDTH, 0.25, True)]


def test_dropout_also_falls_on_the_attention_weights():
    layer = _build(1, dropout=0.5).sketch_layers[0].train()
    own, other = torch.randn(1, 4, WIDTH), torch.randn(1, 4, WIDTH)
    attended = []
    layer.out.register_forward_hook(lambda module, given, made: attended.append(given[0]))
    layer(own, other)
    layer(own, other)
    assert not torch.equal(*attended)


# ---- layers computed again


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("paired", [False, True])
def test_layers_computed_again_give_the_same_gradient_to_the_bit(layers, paired):
    """With dropout on; among the gradients those of the tokens that came in."""
    results = []
    for again in (False, True):
        attention = _build(layers, dropout=0.3).train()
        attention.checkpointing = again
        sketch, photo = (torch.randn(3, 5, WIDTH, requires_grad=True) for _ in range(2))
        pairs = (torch.tensor([2, 0, 2, 1]), torch.tensor([1, 1, 0, 2])) if paired else None
        torch.manual_seed(3)
        kept = Kept()
        with kept:
            crossed = attention(sketch, photo, pairs)
        sum(tokens.square().sum() for tokens in crossed).backward()
        gradients = {name: p.grad for name, p in attention.named_parameters()}
        gradients |= {"sketch": sketch.grad, "photo": photo.grad}
        results.append((crossed, gradients, torch.rand(()), kept.numbers))
    (*plain, kept_in_plain), (*again, kept_in_again) = results
    torch.testing.assert_close(again, plain, rtol=0, atol=0)
    assert all(g.any() for name, g in plain[1].items() if not name.endswith("key.bias"))
    assert kept_in_again < 0.1 * kept_in_plain


def _untrained(layers: int, dropout: float = 0.0) -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(
        width=WIDTH, heads=HEADS, hidden=HIDDEN, layers=layers, dropout=dropout
    ).eval()


def _build(layers: int, dropout: float = 0.0) -> CrossAttention:
    attention = _untrained(layers, dropout)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return attention


def _layer_by_hand(
    layer: CrossAttentionLayer, own: torch.Tensor, other: torch.Tensor
) -> torch.Tensor:
    """One pair: own (N, D) updated, reading other (N, D)."""
    query, key, value = layer.query(own), layer.key(other), layer.value(own)
    each = WIDTH // HEADS
    attended = torch.zeros_like(own)
    for head in range(HEADS):
        part = slice(head * each, (head + 1) * each)
        for token in range(len(own)):
            weights = [
                math.exp(query[token, part].dot(key[n, part]).item() / math.sqrt(each))
                for n in range(len(other))
            ]
            for n, weight in enumerate(weights):
                attended[token, part] += weight / sum(weights) * value[n, part]
    x = _norm_by_hand(layer.norm1, own + layer.out(attended))
    hidden = layer.fc1(x).clamp(min=0)
    return _norm_by_hand(layer.norm2, x + layer.fc2(hidden))


def _norm_by_hand(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    made = torch.empty_like(x)
    for n, token in enumerate(x):
        mean = token.sum() / len(token)
        deviation = (((token - mean) ** 2).sum() / (len(token) - 1)).sqrt()
        made[n] = norm.scale * (token - mean) / (deviation + 1e-6) + norm.shift
    return made
