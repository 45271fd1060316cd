"""Down-sampling, similarities and score against the rule written out."""

import math

import pytest
import torch

from model.zse.relation import DirectMatch, RelationNetwork, anchor_similarities, possible_anchors

WIDTH = 12


# ---- anchors, similarities, score


@pytest.mark.parametrize(
    ("tokens", "anchors"),
    [
        (196, [49, 196]),
        (144, [36, 144]),
        (49, [9, 49]),
        (100, [25, 100]),
        (4, [1, 4]),
        (1, []),
        (177, []),
        (160, []),
    ],
)
def test_possible_anchors(tokens, anchors):
    assert possible_anchors(tokens) == anchors


def test_published_downsampling_reads_the_memory_as_channels_first():
    """A kernel that picks one input tells which of the (16, 12) numbers it sees."""
    relation = _build(downsampling="published")
    tokens = torch.arange(16.0 * WIDTH).view(1, 16, WIDTH)
    for channel, row, column in ((0, 0, 0), (0, 1, 1), (5, 0, 1), (11, 1, 0)):
        picked = _pick(relation, channel, row, column, tokens)
        wanted = [
            channel * 16 + (2 * y + row) * 4 + (2 * x + column) for y in range(2) for x in range(2)
        ]
        assert picked == wanted  # the number itself is its place in memory


def test_spatial_downsampling_reads_neighbouring_patches():
    relation = _build(downsampling="spatial")
    tokens = torch.arange(16.0 * WIDTH).view(1, 16, WIDTH)
    for channel, row, column in ((0, 0, 0), (0, 1, 1), (5, 0, 1), (11, 1, 0)):
        picked = _pick(relation, channel, row, column, tokens)
        patches = [(2 * y + row) * 4 + (2 * x + column) for y in range(2) for x in range(2)]
        assert picked == [patch * WIDTH + channel for patch in patches]


@pytest.mark.parametrize("downsampling", ["published", "spatial"])
@pytest.mark.parametrize("side", [4, 5])
def test_downsampling_equals_the_sum_written_out(downsampling, side):
    relation = _build(downsampling=downsampling, tokens=side * side, anchors=4)
    tokens = torch.randn(2, side * side, WIDTH)
    weight, bias = relation.reduce.weight, relation.reduce.bias
    with torch.inference_mode():
        made = relation.anchors(tokens)
        assert made.shape == (2, 4, WIDTH * 2 // 3)
        for image in range(2):
            memory = tokens[image].flatten()
            for anchor in range(4):
                total = bias.clone()
                for channel in range(WIDTH):
                    for row in range(2):
                        for column in range(2):
                            y, x = 2 * (anchor // 2) + row, 2 * (anchor % 2) + column
                            if downsampling == "published":
                                value = memory[channel * side * side + y * side + x]
                            else:
                                value = tokens[image, y * side + x, channel]
                            total += weight[:, channel, row, column] * value
                torch.testing.assert_close(made[image, anchor], total)


def test_a_spatial_anchor_depends_on_its_own_region_alone():
    relation = _build(downsampling="spatial")
    tokens = torch.randn(1, 16, WIDTH)
    changed = tokens.clone()
    changed[:, 0] += 1  # the top left patch
    with torch.inference_mode():
        differs = (relation.anchors(tokens) != relation.anchors(changed)).any(dim=-1)
    assert differs[0].tolist() == [True, False, False, False]


def test_all_tokens_are_compared_as_they_are():
    relation = _build(downsampling="published", anchors=16)
    tokens = torch.randn(2, 16, WIDTH)
    assert relation.anchors(tokens) is tokens
    assert not any(name.startswith("reduce") for name in relation.state_dict())


def test_similarities_are_cosines_with_a_row_for_each_sketch_anchor():
    torch.manual_seed(0)
    sketch, photo = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    made = anchor_similarities(sketch, photo)
    for pair in range(2):
        for row in range(3):
            for column in range(3):
                a, b = sketch[pair, row], photo[pair, column]
                assert made[pair, row, column].item() == pytest.approx(_cosine(a, b), abs=1e-6)


def test_a_zero_vector_is_similar_to_nothing():
    sketch, photo = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    sketch[0, 1] = 0
    sketch.requires_grad_()
    made = anchor_similarities(sketch, photo)
    assert made[0, 1].tolist() == [0, 0]
    assert made[0, 0].all()
    made.sum().backward()
    assert sketch.grad.isfinite().all()
    assert anchor_similarities(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)).tolist() == [
        [[0, 0], [0, 0]]
    ]


def test_the_score_reads_the_matrix_row_by_row():
    relation = _build(downsampling="published")
    sketch, photo = _draw(3)
    first, _, _, second, _, _, third = relation.score
    with torch.inference_mode():
        logits = relation(sketch[:, 1:], photo[:, 1:])
        assert logits.shape == (3,)
        for pair in range(3):
            a, b = relation.anchors(sketch[:, 1:])[pair], relation.anchors(photo[:, 1:])[pair]
            flat = torch.stack(
                [torch.cosine_similarity(a[i], b[j], dim=0) for i in range(4) for j in range(4)]
            )
            hidden = second(first(flat).clamp(min=0)).clamp(min=0)
            torch.testing.assert_close(logits[pair], third(hidden)[0])


def test_sketch_and_photo_are_not_exchangeable():
    relation = _build(downsampling="published")
    sketch, photo = _draw(1)
    with torch.inference_mode():
        assert not torch.allclose(
            relation(sketch[:, 1:], photo[:, 1:]), relation(photo[:, 1:], sketch[:, 1:])
        )


# ---- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shortcut", [False, True])
def test_under_autocast_anchors_are_halved_and_what_compares_them_is_not(dtype, shortcut):
    relation = _build(downsampling="spatial", shortcut=shortcut)
    (sketch, photo), cosines = _draw(3), torch.rand(3)
    if shortcut:
        with torch.no_grad():
            relation.shortcut.weights.copy_(torch.tensor([2.0, 3.0, -5.0]))
    given = []
    for layer in relation.score:
        layer.register_forward_hook(lambda module, x, made: given.extend([*x, made]))
    with torch.no_grad(), torch.autocast("cpu", dtype):
        anchors = [relation.anchors(tokens[:, 1:]) for tokens in (sketch, photo)]
        logits = relation(sketch[:, 1:], photo[:, 1:], cosines)
        assert torch.is_autocast_enabled("cpu")  # for what comes after
    assert {side.dtype for side in anchors} == {dtype}
    assert {x.dtype for x in [logits, *given]} == {torch.float32}
    with torch.no_grad():
        wanted = relation.compare(*(side.float() for side in anchors), cosines)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=0)


# ---- shortcut


@pytest.mark.parametrize(
    ("downsampling", "anchors"), [("published", 4), ("spatial", 4), ("spatial", 16)]
)
def test_the_shortcut_adds_three_weighed_cosines(downsampling, anchors):
    plain = _build(downsampling=downsampling, anchors=anchors)
    relation = _build(downsampling=downsampling, anchors=anchors, shortcut=True)
    sketch, photo = _draw(3)
    cosines = torch.tensor([0.5, -0.25, 0.125])
    with torch.no_grad():
        assert relation.shortcut.weights.tolist() == [2, 0, 0]
        relation.shortcut.bias.fill_(0.25)
        relation.shortcut.weights.copy_(torch.tensor([2.0, 3.0, -5.0]))
        added = relation(sketch[:, 1:], photo[:, 1:], cosines) - plain(sketch[:, 1:], photo[:, 1:])
        assert added.shape == (3,)
        for pair in range(3):
            a = plain.anchors(sketch[:, 1:])[pair]
            b = plain.anchors(photo[:, 1:])[pair]
            matrix = [[_cosine(x, y) for y in b] for x in a]
            best_of_sketch = [max(row) for row in matrix]
            best_of_photo = [max(column) for column in zip(*matrix, strict=True)]
            wanted = 2 * cosines[pair].item()
            wanted += 3 * sum(best_of_sketch) / anchors - 5 * sum(best_of_photo) / anchors
            assert added[pair].item() == pytest.approx(10 * (wanted + 0.25), abs=1e-3)


def test_the_shortcut_orders_by_the_retrieval_tokens_before_anything_is_learned():
    shortcut, cosines = DirectMatch(), torch.tensor([1.0, 0.5, 0.0, -1.0])
    with torch.inference_mode():
        made = shortcut(cosines, torch.rand(4, 3, 3))
    torch.testing.assert_close(made, 10 * (2 * cosines - 0.8))


def test_the_gradient_reaches_all_that_the_shortcut_reads():
    shortcut, cosines = DirectMatch(), torch.zeros(2, requires_grad=True)
    with torch.no_grad():
        shortcut.weights.fill_(1)
    anchors = torch.zeros(2, 4, WIDTH, requires_grad=True)
    shortcut(cosines, anchor_similarities(anchors, torch.randn(2, 4, WIDTH))).sum().backward()
    assert cosines.grad.tolist() == [10, 10]
    assert anchors.grad.isfinite().all() and anchors.grad.any()


# ---- widths


@pytest.mark.parametrize(
    ("tokens", "anchors", "widths"),
    [
        (196, 49, [2401, 343, 49, 1]),
        (144, 36, [1296, 216, 36, 1]),
        (144, 144, [20736, 1728, 144, 1]),
        (196, 196, [38416, 2744, 196, 1]),
    ],
)
def test_layers_have_the_published_widths(tokens, anchors, widths):
    with torch.device("meta"):
        relation = RelationNetwork(
            width=768,
            tokens=tokens,
            anchors=anchors,
            downsampling="published",
            shortcut=False,
            dropout=0.1,
        )
    layers = [relation.score[i] for i in (0, 3, 6)]
    assert [layers[0].in_features, *(layer.out_features for layer in layers)] == widths
    assert [relation.score[i].p for i in (2, 5)] == [0.1, 0.1]
    if anchors < tokens:
        assert relation.reduce.weight.shape == (512, 768, 2, 2)
    else:
        assert relation.reduce is None


def _build(
    *, downsampling: str, tokens: int = 16, anchors: int = 4, shortcut: bool = False
) -> RelationNetwork:
    torch.manual_seed(0)
    return RelationNetwork(
        width=WIDTH,
        tokens=tokens,
        anchors=anchors,
        downsampling=downsampling,
        shortcut=shortcut,
        dropout=0.1,
    ).eval()


def _draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All tokens of sketches and of photos, the retrieval token first: (count, 1 + 16, WIDTH)."""
    return torch.randn(count, 17, WIDTH), torch.randn(count, 17, WIDTH)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.dot(b) / math.sqrt(a.dot(a) * b.dot(b))).item()


@torch.no_grad()
def _pick(
    relation: RelationNetwork, channel: int, row: int, column: int, tokens: torch.Tensor
) -> list:
    """The numbers that one place of the kernel sees, anchor by anchor."""
    relation.reduce.weight.zero_()
    relation.reduce.bias.zero_()
    relation.reduce.weight[0, channel, row, column] = 1
    return relation.anchors(tokens)[0, :, 0].tolist()
