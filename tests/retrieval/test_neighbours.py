"""Nearest vectors: FAISS finds what comparing with all of them finds, ties included."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.method import Method
from retrieval import neighbours
from retrieval.neighbours import (
    KINDS,
    Index,
    has_gpu,
    load_faiss,
    measured_recall,
    recall_of_photos,
)
from retrieval.ranking import Order, Ties
from retrieval.scoring import ByVectors, Photos
from utils.errors import InputError

pytest.importorskip("faiss")
CPU = torch.device("cpu")
Q, G, D = 5, 600, 8


def cosine(queries, gallery):
    return Method.similarity(None, queries, gallery)


@pytest.fixture
def queries():
    return torch.randn(Q, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def vectors():
    return torch.randn(G, D, generator=torch.Generator().manual_seed(2))


def paths(vectors) -> list[str]:
    return [f"{number}.jpg" for number in range(len(vectors))]


def nearest(index, queries, vectors, count, similarity=cosine):
    """Photos and scores as a search finds them: (Q, count) each."""
    photos = Photos({"retrieval": vectors}, paths(vectors), device=CPU, block=32)
    ranker = ByVectors(SimpleNamespace(similarity=similarity), photos, index=index)
    ranking = ranker.rank({"retrieval": queries}, count)
    return ranking.photos, ranking.scores


def slowly(queries, vectors, count):
    """Every cosine, one by one, then sorted."""
    order = Ties(paths(vectors), [], CPU).places.tolist()
    rows = []
    for query in queries:
        scores = torch.nn.functional.cosine_similarity(query[None], vectors).tolist()
        rows.append(sorted(range(len(vectors)), key=lambda n: (-scores[n], order[n]))[:count])
    return rows


@pytest.mark.parametrize("count", [1, 10, 100, G])
def test_exact_search_gives_the_nearest(queries, vectors, count):
    photos, scores = nearest(Index(vectors, "exact", CPU), queries, vectors, count)
    assert photos.tolist() == slowly(queries, vectors, count)
    whole = cosine({"retrieval": queries}, {"retrieval": vectors}).gather(1, photos)
    torch.testing.assert_close(scores, whole)


@pytest.mark.parametrize("copies", [2, 30, 300])
@pytest.mark.parametrize("count", [1, 10, 33])
def test_equal_photos_come_in_the_order_of_their_paths_however_many(queries, copies, count):
    """More photos tie at the end of the first so many than FAISS is to find at first."""
    different = torch.randint(-2, 3, (G // copies, D), generator=torch.Generator().manual_seed(3))
    vectors = different.float().repeat(copies, 1)
    similarity = cosine({"retrieval": queries}, {"retrieval": vectors})
    expected = Order(similarity, Ties(paths(vectors), [vectors.numpy()], CPU)).best(count)
    photos, _ = nearest(Index(vectors, "exact", CPU), queries, vectors, count)
    assert photos.tolist() == expected.photos.tolist()


def test_few_photos_are_found_without_comparing_all_by_the_method(queries, vectors):
    compared = []

    def counted(queries, gallery):
        compared.append(len(gallery["retrieval"]))
        return cosine(queries, gallery)

    nearest(Index(vectors, "exact", CPU), queries, vectors, 10, counted)
    assert len(compared) == Q and max(compared) < G // 4
    compared.clear()
    nearest(None, queries, vectors, 10, counted)
    assert compared == [G]


def test_zero_vectors_are_at_a_right_angle_to_all(queries, vectors):
    vectors[7] = 0
    photos, scores = nearest(Index(vectors, "exact", CPU), queries, vectors, G)
    for row, values in zip(photos.tolist(), scores, strict=True):
        assert values[row.index(7)] == 0
    assert torch.isfinite(scores).all()


def test_approximate_search_scores_and_orders_as_exact_search_does(queries, vectors):
    photos, scores = nearest(Index(vectors, "ivf", CPU), queries, vectors, 10)
    exact = torch.tensor(slowly(queries, vectors, 10))
    assert (
        np.mean(
            [len(set(a) & set(b)) for a, b in zip(photos.tolist(), exact.tolist(), strict=True)]
        )
        > 8
    )
    assert (scores.diff(dim=1) <= 0).all()
    whole = cosine({"retrieval": queries}, {"retrieval": vectors}).gather(1, photos)
    torch.testing.assert_close(scores, whole)


def test_what_an_index_does_not_find_is_looked_for_everywhere(queries, vectors):
    index = Index(vectors, "ivf", CPU)
    index.index.nprobe = 1  # a cell of fifteen or so holds fewer than are wanted
    photos, _ = nearest(index, queries, vectors, 100)
    assert photos.tolist() == slowly(queries, vectors, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_is_the_same(tmp_path, queries, vectors, kind):
    built = Index(vectors, kind, CPU)
    built.write(tmp_path / "index")
    read = Index(vectors, kind, CPU, tmp_path / "index")
    for ours, theirs in zip(built.search(queries, 9), read.search(queries, 9), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (tmp_path / "index").stat().st_size == built.size()
    with pytest.raises(InputError, match="600 vectors of 8"):
        Index(vectors[1:], kind, CPU, tmp_path / "index")


def test_recall_by_hand(vectors):
    class Half:
        """Finds the first half of the nearest, and something far behind."""

        def search(self, queries, count):
            numbers = np.array(slowly(queries, vectors, len(vectors)))
            numbers = np.concatenate([numbers[:, : count // 2], numbers[:, -(count // 2) :]], 1)
            exact = cosine({"retrieval": queries}, {"retrieval": vectors})
            return exact.gather(1, torch.from_numpy(numbers)).numpy(), numbers

    assert measured_recall(Half(), vectors[:20], vectors, 10) == pytest.approx(0.5)
    by_hand = (11 * 5 / 11 - 1) / 10  # of eleven found five, and itself does not count
    assert recall_of_photos(Half(), vectors) == pytest.approx(by_hand)
    assert recall_of_photos(Index(vectors, "exact", CPU), vectors) == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_with_expansion_all_photos_are_compared(queries, vectors, kind):
    """The index holds vectors that are not averaged."""
    photos = Photos({"retrieval": vectors}, paths(vectors), device=CPU, block=32)
    method = SimpleNamespace(similarity=cosine)
    plain, indexed = (
        ByVectors(method, photos, expand=5, index=index)
        for index in (None, Index(vectors, kind, CPU))
    )
    one, other = (ranker.rank({"retrieval": queries}, 10) for ranker in (plain, indexed))
    assert torch.equal(one.photos, other.photos) and torch.equal(one.scores, other.scores)


def test_recall_with_fewer_vectors_than_are_to_be_found(vectors):
    assert recall_of_photos(Index(vectors[:3], "ivf", CPU), vectors[:3]) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("first", ["torch", "faiss"])
def test_torch_and_faiss_live_together_whichever_comes_first(first):
    """Each brings an OpenMP of its own."""
    code = f"""
import {first}
import faiss, torch, numpy
from retrieval.neighbours import load_faiss
vectors = torch.randn(3000, 64)
for threads in (1, 2, 1):
    torch.set_num_threads(threads)
    assert load_faiss().omp_get_max_threads() == threads
    index = faiss.IndexFlatIP(64)
    index.add(vectors.numpy())
    for _ in range(3):
        found = index.search(vectors[:40].numpy(), 5)[1]
        assert ((vectors[:40] @ vectors.T).topk(5).indices.numpy() == found).all()
"""
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_without_faiss_every_photo_is_compared(monkeypatch, caplog, vectors):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert load_faiss() is None
    assert "every photo is compared" in caplog.text
    with pytest.raises(InputError, match="pip install faiss-cpu"):
        Index(vectors, "ivf", CPU)


def test_the_gpu_build_is_used_where_it_is_installed(monkeypatch, queries, vectors):
    faiss, moved = load_faiss(), []
    offered = {
        "StandardGpuResources": lambda: "resources",
        "get_num_gpus": lambda: 1,
        "index_cpu_to_gpu": lambda *given: moved.append(given) or given[2],
        **{n: getattr(faiss, n) for n in ("IndexFlatIP", "IndexIVFFlat", "METRIC_INNER_PRODUCT")},
    }
    gpu_build = SimpleNamespace(**offered)
    assert has_gpu(gpu_build) and not has_gpu(faiss)
    monkeypatch.setattr(neighbours, "load_faiss", lambda: gpu_build)
    index = Index(vectors, "exact", torch.device("cuda", 0))
    assert [given[:2] for given in moved] == [("resources", 0)]
    assert index.most == neighbours.MOST_ON_GPU
    index.most = 40  # fewer than are to be found with a margin
    assert nearest(index, queries, vectors, 20)[0].tolist() == slowly(queries, vectors, 20)
    Index(vectors, "exact", CPU)
    assert len(moved) == 1
