"""Many pairs in little work, against the plain network, which saves nothing."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benches import plain_network
from benches.plain_network import plain_pair_logits
from model import build_model
from model.zse.cross_attention import UnbiasedLayerNorm
from model.zse.pairs import WORKING_SET, PairScorer, _norm_in_place
from model.zse.settings import ZSESettings
from utils.speed import operations_of

KINDS = [
    {},
    {"layers": 2},
    {"anchors": 100},
    {"downsampling": "spatial"},
    {"shortcut": True, "whitening": True},
    {"shortcut": True, "layers": 3, "anchors": 25, "downsampling": "spatial"},
    {"keep_rate": 0.86, "heads": 4},  # 64 patch tokens are left
    {"keep_rate": 0.781, "downsampling": "spatial"},  # 49: the last row and column are not read
]


@pytest.fixture
def encoded(build_small, draw_images):
    """A function: a method of some kind, the features of 3 sketches and of 5 photos."""

    def encode(**changed):
        method = build_small(**changed)
        with torch.no_grad():
            if method.relation.shortcut is not None:
                method.relation.shortcut.weights.copy_(torch.tensor([1.0, -2.0, 3.0]))
            return (
                method,
                method.encode(draw_images(3), "sketch"),
                method.encode(draw_images(5, seed=1), "photo"),
            )

    return encode


@pytest.mark.parametrize("changed", KINDS)
@torch.inference_mode()
def test_every_pair_has_the_logit_of_the_plain_network(changed, encoded):
    method, queries, gallery = encoded(**changed)
    plain = plain_pair_logits(method, queries["tokens"], gallery["tokens"])
    made = method.pair_similarity(queries, gallery)
    assert made.shape == (3, 5) and made.dtype == torch.float32
    assert plain.std() > 1e-4
    torch.testing.assert_close(made, plain, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("shortcut", [True, False])
@torch.inference_mode()
def test_a_shortcut_reads_the_retrieval_vectors_that_it_is_given(shortcut, encoded):
    """Not those of the tokens: means over views, and expanded ones, reach it."""
    method, queries, gallery = encoded(shortcut=shortcut)
    other = {**queries, "retrieval": queries["retrieval"].flip(-1)}
    made = [method.pair_similarity(sketches, gallery) for sketches in (queries, other)]
    assert torch.allclose(*made) != shortcut


@pytest.mark.parametrize("at_a_time", [1, 2, 5])
@torch.inference_mode()
def test_pairs_do_not_depend_on_how_many_are_scored_at_a_time(at_a_time, encoded, monkeypatch):
    method, queries, gallery = encoded(shortcut=True)
    whole = method.pair_similarity(queries, gallery)
    monkeypatch.setattr(PairScorer, "pairs_at_a_time", lambda self, tokens: at_a_time)
    torch.testing.assert_close(
        method.pair_similarity(queries, gallery), whole, rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("changed", KINDS)
@torch.inference_mode()
def test_operations_are_those_executed(changed, encoded, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # the counter sees its own thread
    method, queries, gallery = encoded(**changed)
    score = method.pair_scorer(torch.float32)
    prepared = []

    def prepare():
        prepared[:] = score.prepare(queries, "sketch"), score.prepare(gallery, "photo")

    once = operations_of(prepare)
    tokens, D = queries["tokens"].shape[1:]
    read = prepared[0]["own"].shape[1]
    assert once == (3 + 5) * 2 * D * D * (read + 2 * tokens)  # q, k and v
    paired = operations_of(lambda: score(*prepared))
    assert paired == 15 * score.operations(queries["tokens"])


def test_a_pair_at_vit_b_takes_what_the_paper_s_network_needs():
    """2.255 GFLOP, less what the retrieval token would take."""
    with torch.device("meta"):
        method = build_model(ZSESettings()).eval()
        tokens = torch.empty(1, 197, 768)
    score = method.pair_scorer(torch.float32)
    assert score.operations(tokens, every=True) / 1e9 == pytest.approx(2.255, abs=0.001)
    assert score.operations(tokens) / 1e9 == pytest.approx(2.245, abs=0.001)


@torch.inference_mode()
def test_no_score_reads_a_retrieval_token_after_cross_attention(encoded, monkeypatch):
    """So that leaving it out is exact: the plain network says the same whatever stands there."""
    method, queries, gallery = encoded()
    plain = plain_pair_logits(method, queries["tokens"], gallery["tokens"])
    norm = plain_network._norm

    def with_other_first_token(module, x):
        normed = norm(module, x).clone()
        if module is method.cross_attention.sketch_layers[0].norm2:
            normed[:, 0] = 7.0
        return normed

    monkeypatch.setattr(plain_network, "_norm", with_other_first_token)
    other = plain_pair_logits(method, queries["tokens"], gallery["tokens"])
    assert torch.equal(other, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("changed", [{}, {"shortcut": True, "layers": 2}])
@torch.inference_mode()
def test_in_half_precision_logits_are_near_and_the_method_is_as_it_was(changed, dtype, encoded):
    method, queries, gallery = encoded(**changed)
    exact = method.pair_similarity(queries, gallery)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    score = method.pair_scorer(dtype)
    prepared = score.prepare(queries, "sketch"), score.prepare(gallery, "photo")
    assert {prepared[0][n].dtype for n in ("own", "query", "key", "value")} == {dtype}
    assert torch.equal(prepared[0]["retrieval"], queries["retrieval"])
    made = score(*prepared)
    assert made.dtype == torch.float32
    assert 0 < (made - exact).abs().max() < 0.05 * exact.abs().max()
    for name, tensor in method.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])


@torch.inference_mode()
def test_the_working_set_bounds_how_many_pairs_are_scored_at_a_time(encoded, monkeypatch):
    method, _, gallery = encoded()
    score = method.pair_scorer(torch.float32)
    tokens = score.prepare(gallery, "photo")["own"]
    hidden = method.cross_attention.sketch_layers[0].fc1.out_features
    of_pair = 2 * 100 * (4 * 64 + 2 * hidden) * 4
    monkeypatch.setitem(WORKING_SET, "cpu", 3 * of_pair)
    assert score.pairs_at_a_time(tokens) == 3
    assert score.pairs_at_a_time(tokens.half()) == 6
    monkeypatch.setitem(WORKING_SET, "cpu", 1)
    assert score.pairs_at_a_time(tokens) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_threads_score_what_one_does_and_their_number_stays(mode, encoded, monkeypatch):
    monkeypatch.setattr(PairScorer, "pairs_at_a_time", lambda self, tokens: 2)
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with mode():
                method, queries, gallery = encoded(shortcut=True)
                made.append(method.pair_similarity(queries, gallery))
            assert torch.get_num_threads() == threads
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*made, rtol=1e-5, atol=2e-6)


def test_an_error_in_a_thread_leaves_their_number_as_it_was(encoded, monkeypatch):
    def fail(*_):
        raise MemoryError("full")

    monkeypatch.setattr(PairScorer, "pairs_at_a_time", lambda self, tokens: 2)
    method, queries, gallery = encoded()
    score, before = method.pair_scorer(torch.float32), torch.get_num_threads()
    score._score = fail
    prepared = score.prepare(queries, "sketch"), score.prepare(gallery, "photo")
    try:
        torch.set_num_threads(3)
        with pytest.raises(MemoryError):
            score(*prepared)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@torch.inference_mode()
def test_compiled_scores_are_the_same(encoded, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch's own forgets the CPU
    method, queries, gallery = encoded(shortcut=True)
    score = method.pair_scorer(torch.float32, compiled=True)
    made = score(score.prepare(queries, "sketch"), score.prepare(gallery, "photo"))
    exact = method.pair_similarity(queries, gallery)
    torch.testing.assert_close(made, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_the_norm_that_writes_over_its_input_is_the_norm(dtype):
    norm, shift = UnbiasedLayerNorm(768), torch.randn(768)
    norm.scale.normal_()
    x = 3 * torch.randn(4, 768) + 1
    exact = norm(x) + shift
    made = _norm_in_place(norm, shift, dtype)(x.to(dtype)).float()
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(made, exact, rtol=tolerance, atol=tolerance)
    even = torch.full((1, 768), 3.0, dtype=dtype)
    torch.testing.assert_close(_norm_in_place(norm, shift, dtype)(even)[0], shift.to(dtype))
