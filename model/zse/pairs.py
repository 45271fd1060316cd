"""Scores of many pairs of few images, without gradients (ZSE-SBIR, Lin et al., CVPR 2023).

The same scores as in training, with less work. Once an image: the projections that the first
cross-attention layers read. Once a pair: attention, output projection, feed-forward network, norms,
down-sampling, cosines, relation network; only for the tokens that the relation network reads, in
the order in which it reads them.
"""

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import functional as F

from model.method import Features
from model.zse.cross_attention import (
    CrossAttention,
    CrossAttentionLayer,
    UnbiasedLayerNorm,
    split_heads,
)
from model.zse.relation import RelationNetwork

WORKING_SET = {"cpu": 64 * 2**20, "cuda": 2**30}
"""Bytes for the tensors of the pairs scored at a time; of a thread on CPUs, which have caches."""
EVEN_KEYS = 16  # multiples of so many keys save CPUs a quarter of the attention in bfloat16


class PairScorer:
    """Relation logits of every sketch with every photo.

    cross_attention, relation: in evaluation mode. dtype: in which everything down to the anchors is
    computed; from there to the logit it is fp32. similarity: (queries, gallery) -> (Q, G), the
    cosines that the shortcut reads. compiled: by torch.compile.
    """

    def __init__(
        self,
        cross_attention: CrossAttention,
        relation: RelationNetwork,
        similarity: Callable[[Features, Features], Tensor],
        *,
        dtype: torch.dtype,
        compiled: bool,
    ):
        sides = cross_attention.sketch_layers, cross_attention.photo_layers
        self.layers = [
            tuple(_MergedLayer(layer, dtype) for layer in pair) for pair in zip(*sides, strict=True)
        ]
        self.relation = relation
        self.reduce = copy.deepcopy(relation.reduce)
        if self.reduce is not None:
            self.reduce.to(dtype)
        self.similarity = similarity
        self.dtype = dtype
        self._score = torch.compile(self._score_pairs) if compiled else self._score_pairs

    @torch.no_grad()
    def prepare(self, features: Features, modality: str) -> Features:
        """All that depends on one image alone, in place of the tokens of encode().

        'own' and 'query' (B, n, D) are of the tokens to be updated, 'key' and 'value' (B, N, D) of
        all; 'mask' (B, 1, 1, N) is there where keys were appended to even out their number.
        """
        features = dict(features)
        tokens = features.pop("tokens").to(self.dtype)
        own, other = self.layers[0] if modality == "sketch" else self.layers[0][::-1]
        made = own.project(tokens, self._updated(tokens)) | {"key": other.key(tokens)}
        missing = -tokens.shape[1] % EVEN_KEYS
        if self.dtype == torch.bfloat16 and tokens.device.type == "cpu" and missing:
            made["mask"] = F.pad(tokens.new_zeros(tokens.shape[:2]), (0, missing), value=-math.inf)
            made["mask"] = made["mask"][:, None, None]
            made |= {name: F.pad(made[name], (0, 0, 0, missing)) for name in ("key", "value")}
        return features | made

    @torch.no_grad()
    def __call__(self, queries: Features, gallery: Features) -> Tensor:
        """Logits (Q, G) in float32, of prepared sketches and photos."""
        cosines = None
        if self.relation.shortcut is not None:
            cosines = self.similarity(queries, gallery).float()  # (Q, G)
        Q, G = len(queries["own"]), len(gallery["own"])
        logits = torch.empty(Q, G, device=queries["own"].device)
        rounds = -(-G // self.pairs_at_a_time(gallery["own"]))

        def score(job: tuple[int, int]) -> None:
            turn, number = job
            block = slice(turn * G // rounds, (turn + 1) * G // rounds)  # of about equal size
            sketch = {name: tensor[number : number + 1] for name, tensor in queries.items()}
            photos = {name: tensor[block] for name, tensor in gallery.items()}
            shortcut = None if cosines is None else cosines[number, block]
            logits[number, block] = self._score(sketch, photos, shortcut)

        _do_all(score, [(turn, number) for turn in range(rounds) for number in range(Q)], logits)
        return logits

    def pairs_at_a_time(self, own: Tensor) -> int:
        """How many pairs of images with such tokens (., n, D) go into the working set."""
        numbers = 2 * own.shape[1] * (4 * own.shape[2] + 2 * self.layers[0][0].hidden)
        return max(1, WORKING_SET[own.device.type] // (numbers * own.element_size()))

    def operations(self, tokens: Tensor, every: bool = False) -> int:
        """Multiplications and additions of matrix products for a pair of images (., N, D).

        every: as if all tokens were updated, also those that are not read.
        """
        N, D = tokens.shape[1:]
        hidden = self.layers[0][0].hidden
        layers = 0
        for number in range(len(self.layers)):
            n = N if number or every else len(self._updated(tokens))
            layers += n * (2 * N * D + D * D + 2 * D * hidden) + bool(number) * 3 * N * D * D
        maps = [layer for layer in self.relation.score if isinstance(layer, torch.nn.Linear)]
        anchors, width, reduction = math.isqrt(maps[0].in_features), D, 0
        if self.reduce is not None:
            width, reduction = self.reduce.out_channels, anchors * self.reduce.weight.numel()
        scores = sum(layer.weight.numel() for layer in maps)
        cosine = 0 if self.relation.shortcut is None else D
        return 2 * (2 * (layers + reduction) + anchors**2 * width + scores + cosine)

    @property
    def _in_windows(self) -> bool:
        """Whether the first layer leaves tokens in the order in which down-sampling reads them."""
        return (
            len(self.layers) == 1 and self.reduce is not None and self.reduce.reading == "spatial"
        )

    def _updated(self, tokens: Tensor) -> Tensor:
        """Numbers of the tokens that the first layer updates, of (., N, D): the ones read later."""
        numbers = torch.arange(tokens.shape[1], device=tokens.device)
        if len(self.layers) > 1:
            return numbers  # by the next layer
        if self._in_windows:
            return self.reduce.windows(numbers[None, 1:, None]).flatten()
        return numbers[1:]

    def _score_pairs(self, sketch: Features, photos: Features, cosines: Tensor | None) -> Tensor:
        """Logits (P,) of one sketch with P photos."""
        pairs = len(photos["own"])
        sketch = {name: tensor.expand(pairs, *tensor.shape[1:]) for name, tensor in sketch.items()}
        of_sketch, of_photo = self.layers[0]
        crossed = of_sketch.update(sketch, photos), of_photo.update(photos, sketch)
        for of_sketch, of_photo in self.layers[1:]:
            a, b = crossed
            every = torch.arange(a.shape[1], device=a.device)
            a, b = (
                of_sketch.project(a, every) | {"key": of_photo.key(a)},
                of_photo.project(b, every) | {"key": of_sketch.key(b)},
            )
            crossed = of_sketch.update(a, b), of_photo.update(b, a)
        anchors = [self._anchors(tokens).float() for tokens in crossed]  # (P, A, C)
        return self.relation.compare(*anchors, cosines)

    def _anchors(self, tokens: Tensor) -> Tensor:
        """The anchors of cross-attended tokens (P, n, D)."""
        if self._in_windows:
            return self.reduce.of_windows(tokens.unflatten(1, (-1, 4)).flatten(2))
        if len(self.layers) > 1:
            tokens = tokens[:, 1:]
        return tokens if self.reduce is None else self.reduce(tokens)


def _do_all(score: Callable, jobs: list, logits: Tensor) -> None:
    """Do the jobs, which fill the logits: on a CPU as many at once as it has threads.

    A thread with pairs of its own waits for no other and keeps them in its own cache.
    """
    threads = torch.get_num_threads()
    if logits.device.type != "cpu" or threads == 1 or len(jobs) == 1:
        for job in jobs:
            score(job)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(torch.inference_mode()(score), jobs))
    finally:
        torch.set_num_threads(threads)  # of all threads that start later, too


class _MergedLayer:
    """A cross-attention layer in one dtype, with its maps merged where that changes no result.

    The bias of the output projection is added to the own tokens once an image. The bias of fc2 goes
    into the shift of norm1, which comes before it on the residual path; fc1 reads that norm too, so
    its own bias is reduced by the effect of the addition. Residuals are the buffers into which
    products are summed.
    """

    def __init__(self, layer: CrossAttentionLayer, dtype: torch.dtype):
        self.heads = layer.heads
        self.hidden = layer.fc1.out_features
        self.maps = {
            name: (getattr(layer, name).weight.to(dtype), getattr(layer, name).bias.to(dtype))
            for name in ("query", "key", "value")
        }
        self.out_weight, self.out_bias = layer.out.weight.to(dtype).T, layer.out.bias.to(dtype)
        self.fc1_weight, self.fc2_weight = (
            layer.fc1.weight.to(dtype).T,
            layer.fc2.weight.to(dtype).T,
        )
        self.fc1_bias = (layer.fc1.bias - layer.fc1.weight @ layer.fc2.bias).to(dtype)
        self.norm1 = _norm_in_place(layer.norm1, layer.norm1.shift + layer.fc2.bias, dtype)
        self.norm2 = _norm_in_place(layer.norm2, layer.norm2.shift, dtype)

    def key(self, other: Tensor) -> Tensor:
        """Keys of the other side's tokens: (B, N, D)."""
        return F.linear(other, *self.maps["key"])

    def project(self, own: Tensor, updated: Tensor) -> Features:
        """What update() reads of own tokens (B, N, D); updated: the numbers of some, (n,)."""
        some = own[:, updated]
        return {
            "own": some + self.out_bias,
            "query": F.linear(some, *self.maps["query"]),
            "value": F.linear(own, *self.maps["value"]),
        }

    def update(self, own: Features, other: Features) -> Tensor:
        """Own tokens, cross-attended: (B, n, D)."""
        attended = F.scaled_dot_product_attention(
            split_heads(own["query"], self.heads),
            split_heads(other["key"], self.heads),
            split_heads(own["value"], self.heads),
            attn_mask=other.get("mask"),
        )  # (B, H, n, D/H)
        shape = own["query"].shape
        attended = attended.transpose(1, 2).reshape(-1, shape[-1])  # (B n, D)
        tokens = own["own"].clone(memory_format=torch.contiguous_format).view_as(attended)
        tokens = self.norm1(tokens.addmm_(attended, self.out_weight))
        hidden = torch.addmm(self.fc1_bias, tokens, self.fc1_weight).relu_()
        return self.norm2(tokens.addmm_(hidden, self.fc2_weight)).view(shape)


def _norm_in_place(
    norm: UnbiasedLayerNorm, shift: Tensor, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """The norm with another shift, for tensors (., D) of dtype that it may write over.

    In half precision it is torch's LayerNorm, in one pass: the eps that differs, a millionth beside
    deviations of about one, is lost in rounding.
    """
    width = len(shift)
    if dtype != torch.float32:
        scale = (norm.scale * math.sqrt((width - 1) / width)).to(dtype)
        shift = shift.to(dtype)
        return lambda x: F.layer_norm(x, (width,), scale, shift, norm.eps**2)

    def normalise(x: Tensor) -> Tensor:
        x -= x.mean(dim=-1, keepdim=True)
        deviation = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / math.sqrt(width - 1)
        x /= deviation + norm.eps
        return torch.addcmul(shift, x, norm.scale, out=x)

    return normalise
