"""How many images at a time: by the memory of a GPU, which is played here, and fixed on CPUs."""

from contextlib import nullcontext

import pytest
import torch
from fakes import FakeEncoder, FakeMethod, image_list

from retrieval import blocks as blocks_module
from retrieval import encoder as encoder_module
from retrieval.blocks import ON_CPU, ON_GPU, SHARE, block_sizes
from retrieval.evaluate import evaluate
from retrieval.scoring import RANKERS

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
MB = 10**6


class Memory:
    """What torch.cuda says of a GPU's memory, on which a program had much to do before."""

    def __init__(self, free):
        self.free = free
        self.used = 7000 * MB
        self.peak = 50_000 * MB

    def take(self, size):
        self.used += size
        self.peak = max(self.peak, self.used)

    def forget_peak(self, device):
        self.peak = self.used


class Hungry(FakeMethod):
    """Each image takes `encoding` bytes while it is encoded, `prepared` when it is prepared."""

    def __init__(self, memory, encoding, prepared):
        super().__init__()
        self.memory, self.encoding, self.bytes_prepared = memory, encoding, prepared
        self.seen, self.autocast = [], None

    def encode(self, images, modality):
        self.seen.append((modality, tuple(images.shape), self.autocast))
        self.memory.take(len(images) * self.encoding)
        self.memory.take(-len(images) * self.encoding)
        return super().encode(images, modality)

    def pair_scorer(self, dtype, compiled=False):
        self.scored_in = dtype
        return self

    def prepare(self, features, modality):
        self.seen.append((modality, len(features["tokens"])))
        self.memory.take(len(features["tokens"]) * self.bytes_prepared)


@pytest.fixture
def sizes_of(monkeypatch):
    """block_sizes() of a method on a GPU of so much free memory; and the method."""

    def sizes(free, encoding, prepared=0, dtype=torch.float32, **settings):
        memory = Memory(free)
        method = Hungry(memory, encoding, prepared)
        zeros = torch.zeros

        def autocast(device, dtype):
            assert device == GPU
            method.autocast = dtype
            return nullcontext()

        def of_gpu(answer):
            return lambda device: answer() if device == GPU else pytest.fail(f"called of {device}")

        with monkeypatch.context() as patch:
            patch.setattr(blocks_module, "half_where_safe", autocast)
            patch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
            patch.setattr(torch.cuda, "mem_get_info", of_gpu(lambda: (memory.free, 80_000 * MB)))
            patch.setattr(torch.cuda, "memory_allocated", of_gpu(lambda: memory.used))
            patch.setattr(torch.cuda, "max_memory_allocated", of_gpu(lambda: memory.peak))
            patch.setattr(torch.cuda, "reset_peak_memory_stats", memory.forget_peak)
            return block_sizes(method, GPU, dtype, **settings), method

    return sizes


@pytest.mark.parametrize(
    ("free", "encoding", "photos", "expected"),
    [
        (80_000 * MB, MB, 10_000, (512, 512)),  # more gain nothing
        (1000 * MB, 4 * MB, 10_000, (50, 50)),  # a fifth of 1000 MB holds 50 images of 4 MB
        (1000 * MB, MB // 10, 100_000, (62, 512)),  # and 62 rows of 100,000 scores of 32 bytes
        (1000 * MB, 4 * MB, 1_000_000, (6, 50)),
        (MB, 1000 * MB, 10_000, (1, 1)),  # but one it has to be
        (MB, MB // 10, 10**9, (1, 2)),
        (1000 * MB, 4 * MB, 0, (50, 50)),
        (1000 * MB, 0, 1000, (512, 512)),
    ],
)
def test_a_gpu_takes_what_a_fifth_of_its_free_memory_holds(
    sizes_of, free, encoding, photos, expected
):
    assert SHARE == 0.2
    found, _ = sizes_of(free, encoding, photos=photos, pairs=False)
    assert found == expected


@pytest.mark.parametrize(
    ("encoding", "prepared", "expected"),
    [
        (2 * MB, 5 * MB, (40, 40)),  # the larger of the two, as the first is over
        (5 * MB, 2 * MB, (40, 40)),
        (MB // 100, MB // 100, (256, 256)),
    ],
)
def test_for_pairs_what_is_prepared_counts_too(sizes_of, encoding, prepared, expected):
    found, _ = sizes_of(1000 * MB, encoding, prepared, photos=1000, pairs=True)
    assert found == expected
    found, _ = sizes_of(1000 * MB, encoding, 10**9, photos=1000, pairs=False)
    assert found == (min(512, 200 * MB // encoding),) * 2  # vectors are not prepared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_images_are_tried_in_the_format_of_the_run(sizes_of, dtype):
    _, method = sizes_of(1000 * MB, MB, photos=9, pairs=True, dtype=dtype)
    assert method.seen == [("photo", (4, 3, 2, 2), dtype), ("photo", 4)]
    assert method.scored_in == dtype


@pytest.mark.parametrize("kind", ["vectors", "pairs"])
def test_cpus_take_what_suits_their_caches(kind):
    sizes = block_sizes(None, CPU, torch.float32, photos=10**9, pairs=kind == "pairs")
    assert sizes == ON_CPU[kind] and all(
        few <= many for few, many in zip(sizes, ON_GPU[kind], strict=True)
    )


# ---- in an evaluation


@pytest.mark.parametrize(("mode", "pairs"), [("sa", False), ("rn", True), ("rerank", True)])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"sketch": [2, 2, 1], "photo": [3, 3, 1]}),
        ({"query_block": 4}, {"sketch": [4, 1], "photo": [3, 3, 1]}),
        ({"gallery_block": 4}, {"sketch": [2, 2, 1], "photo": [4, 3]}),
        ({"query_block": 1, "gallery_block": 9}, {"sketch": [1] * 5, "photo": [7]}),
    ],
)
def test_images_are_encoded_by_these_blocks_unless_others_are_given(
    method, monkeypatch, mode, pairs, given, expected
):
    calls, encoded = [], {"sketch": [], "photo": []}

    def sizes(*arguments, **settings):
        calls.append((*arguments, settings))
        return 2, 3

    plain = method.encode

    def encode(images, modality):
        encoded[modality].append(len(images))
        return plain(images, modality)

    monkeypatch.setattr(encoder_module, "block_sizes", sizes)
    method.encode = encode
    lists = image_list("sketch", [0] * 5), image_list("photo", [0] * 7)
    settings = {"shortlist": 7} if mode == "rerank" else {}
    encoder = FakeEncoder(method, dtype=torch.bfloat16)
    evaluate(encoder, *lists, RANKERS[mode], settings, **given)
    assert encoded == expected
    assert calls == [(method, CPU, torch.bfloat16, {"photos": 7, "pairs": pairs})]
