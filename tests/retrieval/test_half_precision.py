"""An evaluation in half precision: where it reaches, and what stays in fp32."""

import numpy as np
import pytest
import torch
from fakes import FakeEncoder, FakeMethod, encoder_and_settings, image_list, on_disk

from retrieval.evaluate import evaluate
from retrieval.scoring import RANKERS
from utils.precision import DTYPES

CPU = torch.device("cpu")
QUERY_TARGETS = [0, 1, 2, 0, 1]
GALLERY_TARGETS = [0, 0, 1, 1, 1, 2, 2, 3]


def tf32():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


class Halved(FakeMethod):
    """Tokens by a product, in which autocast rounds; and a note of what each stage runs in."""

    def __init__(self):
        super().__init__()
        self.ran = {"encode": set(), "pairs": set()}

    def encode(self, images, modality):
        features = super().encode(images, modality)
        self.ran["encode"].add((torch.is_autocast_enabled("cpu"), *tf32()))
        same = torch.eye(6)
        vectors = features["retrieval"] @ same
        return {"retrieval": vectors, "tokens": vectors.unflatten(1, (2, 3))}

    def pair_similarity(self, queries, gallery):
        self.ran["pairs"].add(tf32())
        return super().pair_similarity(queries, gallery)


@pytest.fixture
def lists(tmp_path):
    return (
        on_disk(image_list("sketch", QUERY_TARGETS), tmp_path),
        on_disk(image_list("photo", GALLERY_TARGETS), tmp_path),
    )


def score(method, lists, mode="rn", **settings):
    for encoded in method.encoded.values():
        encoded.clear()
    names = {"sa": [], "rn": ["fuse"], "rerank": ["fuse", "shortlist"]}[mode]
    of_ranker = {name: settings[name] for name in names if name in settings}
    others = {name: v for name, v in settings.items() if name not in ("fuse", "shortlist")}
    settings = {"query_block": 2, "gallery_block": 3} | others
    encoder, settings = encoder_and_settings(method, settings)
    return evaluate(encoder, *lists, RANKERS[mode], of_ranker, **settings)


@pytest.mark.parametrize("mode", RANKERS)
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_the_format_reaches_the_encoder_and_the_pairs(lists, settings_of_torch, mode, amp):
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    method = Halved()
    found = score(method, lists, mode, amp=amp, shortlist=3)
    assert method.ran["encode"] == {(amp != "off", "highest", False)}
    if mode != "sa":
        assert method.ran["pairs"] == {("highest", False)}
        assert method.scored_in == DTYPES[amp]
    assert tf32() == ("high", True)
    assert found.similarities.dtype == np.float32


def test_without_the_option_all_is_in_fp32(lists):
    method = Halved()
    score(method, lists)
    assert method.scored_in == torch.float32
    assert {autocast for autocast, *_ in method.ran["encode"]} == {False}


@pytest.mark.parametrize("mode", RANKERS)
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("stored", [False, True])
def test_numbers_that_a_format_holds_are_scored_as_in_fp32(lists, tmp_path, mode, amp, stored):
    store = tmp_path / "features" if stored else None
    plain, halved = (
        score(Halved(), lists, mode, amp=name, shortlist=3, fuse=0.5, store=store)
        for name in ("off", amp)
    )
    assert halved.metrics == plain.metrics
    np.testing.assert_array_equal(halved.rankings, plain.rankings)
    np.testing.assert_array_equal(halved.similarities, plain.similarities)


@pytest.mark.parametrize("mode", ["rn", "sa"])
@pytest.mark.parametrize(("amp", "rounded"), [("bf16", 2.0**-8), ("fp16", 2.0**-11)])
def test_others_are_rounded_to_it(lists, mode, amp, rounded):
    plain, halved = Halved(), Halved()
    for method in (plain, halved):
        torch.nn.init.constant_(method.weight, 1 / 3)
    one, other = score(plain, lists, mode), score(halved, lists, mode, amp=amp)
    one, other = (np.sort(found.similarities, axis=1) for found in (one, other))
    assert (one != other).any()
    # numbers are below 1, each half a step off: six of them in a distance, six products of two
    np.testing.assert_allclose(other, one, rtol=0, atol=4.01 * rounded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", [None, "fp16", "fp32"])
@pytest.mark.parametrize("views", ["plain", "mirror"])
def test_retrieval_vectors_come_back_in_fp32(lists, tmp_path, dtype, precision, views):
    method = Halved().eval()
    torch.nn.init.constant_(method.weight, 1 / 3)
    settings = {"precision": precision, "store": tmp_path / "features"} if precision else {}
    encoder = FakeEncoder(method, dtype=dtype, views=views, **settings)
    names = ("retrieval", "tokens")
    with torch.inference_mode():
        for _ in range(2):  # the second time from what is kept
            _, rows, _ = encoder.whole(lists[1], names, 3, "photos encoded")
            features = {name: part[:] for name, part in rows.items()}
            ((_, block, _),) = encoder.blocks(lists[1], names, 100, "photos encoded")
            assert features["retrieval"].dtype == block["retrieval"].dtype == torch.float32
            tokens = {None: dtype, "fp16": torch.float16, "fp32": torch.float32}[precision]
            assert features["tokens"].dtype == tokens
            if precision != "fp16":  # as the network had them
                exact = features["tokens"].float()
                assert torch.equal(exact, exact.to(dtype).float())
                assert torch.equal(exact, block["tokens"].float()) and exact.any()


def test_features_of_each_format_are_kept_apart(lists, tmp_path):
    method, store = Halved(), tmp_path / "features"
    everything = {"sketch": list(range(5)), "photo": list(range(8))}
    nothing = {"sketch": [], "photo": []}
    for number, amp in enumerate(("off", "bf16", "fp16"), start=1):
        score(method, lists, amp=amp, store=store)
        assert method.encoded == everything
        assert len(list(store.glob("*/entries.*.jsonl"))) == 2 * number
    for amp in ("fp16", "off", "bf16"):
        score(method, lists, amp=amp, store=store)
        assert method.encoded == nothing
