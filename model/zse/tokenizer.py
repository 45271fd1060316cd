"""Self-attention tokenizer: a ViT with two stems, a retrieval token, and token selection.

ZSE-SBIR (Lin et al., CVPR 2023) on a Vision Transformer (Dosovitskiy et al., ICLR 2021); the
selection of tokens follows EViT (Liang et al., ICLR 2022).
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.backbone import build_vit

POSITION_STD = 0.4  # of an untrained network: timm's 0.02 drowns in the patch embeddings


class Tokenizer(nn.Module):
    """Images -> one retrieval token and the patch tokens, after all blocks and the final norm.

    vit: see model.backbone.build_vit. keep_rate: share of the patch tokens that each of three
    blocks keeps (at a quarter, half and three quarters of the depth); 1 keeps all. dropout: on the
    embeddings, twice in each MLP and on each attention output.

    tokens (attribute): how many patch tokens come out. checkpointing (attribute): blocks keep no
    activations for the way back, but compute them again.
    Raises InputError for a `vit` that does not fit.
    """

    def __init__(self, *, vit: str, keep_rate: float, dropout: float):
        super().__init__()
        self.vit = build_vit(vit, dropout)
        nn.init.normal_(self.vit.pos_embed, std=POSITION_STD)
        self.width = self.vit.embed_dim
        patch = self.vit.patch_embed.patch_size[0]
        self.scale_stem = ScaleStem(self.width, patch)
        self.keep_rate = keep_rate
        self.checkpointing = False
        depth = len(self.vit.blocks)
        self.selecting = [] if keep_rate == 1 else [depth * i // 4 for i in (1, 2, 3)]
        self.tokens = self.vit.patch_embed.num_patches
        for _ in self.selecting:
            self.tokens = kept_count(self.tokens, keep_rate)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S), normalised -> (B, 1 + tokens, D); the retrieval token comes first."""
        vit = self.vit
        stems = (vit.patch_embed.proj(images) + self.scale_stem(images)) / 2  # (B, D, S/P, S/P)
        x = stems.flatten(2).transpose(1, 2)  # (B, N, D)
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, 1 + N, D)
        x = vit.pos_drop(x + vit.pos_embed)
        for number, block in enumerate(vit.blocks):
            through = partial(self._select_in, block) if number in self.selecting else block
            again = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(through, x, use_reentrant=False) if again else through(x)
        return vit.norm(x)

    @torch.no_grad()
    def start_unharmed(self) -> None:
        """Make the two stems together compute what the pretrained patch embedding alone computed.

        The scale stem is in no pretrained file. Left random, it would halve and disturb the input
        of every later layer. Here its last convolution starts at zero (so it learns from the first
        step) and the patch embedding at twice its value: their mean is unchanged.
        """
        nn.init.zeros_(self.scale_stem.convolutions[-1].weight)
        self.vit.patch_embed.proj.weight.mul_(2)
        self.vit.patch_embed.proj.bias.mul_(2)

    def layers_above(self, name: str) -> int:
        """How many layers stand between a tensor of this name and the output.

        The final norm has none above, then follow the blocks from the last; embeddings come last.
        """
        depth = len(self.vit.blocks)
        if name.startswith("vit.norm."):
            return 0
        if name.startswith("vit.blocks."):
            return depth - int(name.split(".")[2])
        return depth + 1

    def _select_in(self, block: nn.Module, x: Tensor) -> Tensor:
        """A ViT block that drops tokens between its attention and its MLP."""
        normed = block.norm1(x)
        attention = class_attention(block.attn, normed)
        x = x + block.drop_path1(block.ls1(block.attn(normed)))
        x = keep_attended(x, attention, self.keep_rate)
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


class ScaleStem(nn.Module):
    """Strided convolutions that reach one vector a patch through several scales.

    A 7 x 7 convolution, then 3 x 3 ones, stride 2 each, ReLU between, no biases; for 16 px patches
    the widths are 3 > 64 > 128 > 256 > width.
    """

    def __init__(self, width: int, patch: int):
        super().__init__()
        count = int(math.log2(patch))
        widths = [3, *(64 * 2**i for i in range(count - 1)), width]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(
                widths[i],
                widths[i + 1],
                kernel_size=3 if i else 7,
                stride=2,
                padding=1 if i else 3,
                bias=False,
            )
            for i in range(count)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, width, S / patch, S / patch)."""
        # Channels last: twice as fast on CPUs, where torch converts other layouts at every layer.
        x = self.convolutions[0](images.contiguous(memory_format=torch.channels_last))
        for convolution in self.convolutions[1:]:
            x = convolution(torch.relu(x))
        return x


def kept_count(tokens: int, keep_rate: float) -> int:
    """How many of `tokens` stay: ceil(rate * tokens), where 0.1 * 30 is 3 (and not a bit more)."""
    return math.ceil(round(keep_rate * tokens, 6))


def class_attention(attention: nn.Module, normed: Tensor) -> Tensor:
    """How much the class token attends to each patch: softmax, mean over heads, (B, N).

    Only the class token's row of the attention matrix is computed. attention: timm's Attention
    module; normed: its input, (B, 1 + N, D).
    """
    width = normed.shape[-1]
    query_weight, key_weight, _ = attention.qkv.weight.split(width)
    query_bias, key_bias = None, None
    if attention.qkv.bias is not None:
        query_bias, key_bias, _ = attention.qkv.bias.split(width)
    heads = (attention.num_heads, -1)
    query = nn.functional.linear(normed[:, 0], query_weight, query_bias).unflatten(-1, heads)
    key = nn.functional.linear(normed, key_weight, key_bias).unflatten(-1, heads)
    logits = torch.einsum("bhd,bnhd->bhn", query * attention.scale, key)  # (B, H, 1 + N)
    return logits.softmax(dim=-1)[:, :, 1:].mean(dim=1)


def keep_attended(x: Tensor, attention: Tensor, keep_rate: float) -> Tensor:
    """The class token and each image's own most attended patch tokens, in their former order.

    x: (B, 1 + N, D); attention: (B, N) -> (B, 1 + kept_count(N, rate), D).
    """
    count = kept_count(attention.shape[1], keep_rate)
    kept = attention.topk(count, dim=1).indices.sort(dim=1).values + 1  # (B, count)
    patches = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
    return torch.cat([x[:, :1], patches], dim=1)
