"""airmoe's language model (scheduler/model_config.hpp) in PyTorch: RMSNorm, grouped-query attention,
RoPE, SwiGLU, tied embedding; the middle layer's FFN dense, or an MoE layer by the paper's listing."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from . import routing


@dataclasses.dataclass
class ModelShape:
    """The paper's model "small"."""

    layers: int = 16
    dim: int = 256
    heads: int = 4
    kv_heads: int = 1
    ffn_dim: int = 768
    context: int = 1024
    vocab: int = 256
    rope_base: float = 5e5
    experts: int = 65536
    active: int = 512
    expert_dim: int = 1
    codewords: int = 512
    shortlist: int = 2048
    codebook_decay: float = 0.95
    dead_threshold: float = 1.0
    jitter: float = 0.01
    balance_weight: float = 0.01


def linear(inputs, outputs, stddev=0.02):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=stddev)
    return layer


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads, self.kv_heads = shape.heads, shape.kv_heads
        self.width = shape.dim // shape.heads
        both = (shape.heads + 2 * shape.kv_heads) * self.width
        self.project = linear(shape.dim, both)
        self.out = linear(shape.dim, shape.dim, 0.02 / (2 * shape.layers) ** 0.5)

    def forward(self, x, turn):
        batch, length, _ = x.shape
        heads = self.project(x).view(batch, length, -1, self.width).transpose(1, 2)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        y = F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v, is_causal=True,
                                           enable_gqa=self.heads != self.kv_heads)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


def rope_table(shape, device):
    width = shape.dim // shape.heads
    frequency = shape.rope_base ** (-torch.arange(0, width, 2, device=device) / width)
    angle = torch.arange(shape.context, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x, turn):
    """Turns the pairs (x[2i], x[2i + 1]) by the position's angles."""
    cosine, sine = (t[: x.shape[2]].to(x.dtype) for t in turn)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)


class SwigluFfn(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gate_up = linear(shape.dim, 2 * shape.ffn_dim)
        self.down = linear(shape.ffn_dim, shape.dim, 0.02 / (2 * shape.layers) ** 0.5)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up), 0.0


class ListingMoe(nn.Module):
    """The paper's listing: per micro-batch a k-means step; lists rebuilt when dropped, which the
    optimizer step does; gather, einsum and top K per token; experts gathered per token."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

        def table(rows):
            return nn.Parameter(torch.randn(rows, shape.dim) * shape.dim**-0.5)

        self.centroid = table(shape.experts)
        self.up, self.down = (table(shape.experts * shape.expert_dim) for _ in range(2))
        self.norm = nn.LayerNorm(shape.dim, eps=1e-12)
        nn.init.constant_(self.norm.weight, 0.1)  # as airmoe: the experts have a say, no more
        self.register_buffer("sums", torch.zeros(shape.codewords, shape.dim))
        self.register_buffer("counts", torch.zeros(shape.codewords))
        self.lists = None
        self.started = False

    @torch.no_grad()
    def codebook(self, hidden):
        """Moving averages of the tokens' directions; dead codewords start again from tokens."""
        shape = self.shape
        unit = F.normalize(hidden.float(), dim=1)
        fresh = unit[torch.randperm(len(unit), device=unit.device)[: shape.codewords]]
        if not self.started:
            self.sums.copy_(fresh)
            self.counts.fill_(max(1.0, len(unit) / shape.codewords))
            self.started = True
        code = F.normalize(self.sums, dim=1)
        nearest = (unit @ code.T).argmax(1)
        keep = shape.codebook_decay
        self.sums.mul_(keep).index_add_(0, nearest, unit, alpha=1 - keep)
        self.counts.mul_(keep).index_add_(0, nearest, torch.ones_like(nearest, dtype=torch.float),
                                          alpha=1 - keep)
        dead = self.counts < shape.dead_threshold
        self.sums.copy_(torch.where(dead[:, None], fresh, self.sums))
        self.counts.masked_fill_(dead, 1.0)
        return F.normalize(self.sums, dim=1)

    def noise(self, score):
        return score + self.shape.jitter * torch.randn_like(score)

    def forward(self, x):
        shape = self.shape
        hidden = x.flatten(0, 1)
        code = self.codebook(hidden)
        unit = F.normalize(self.centroid, dim=1)
        if self.lists is None:
            with torch.no_grad():
                self.lists = self.noise(code @ unit.T).topk(shape.shortlist, 1, False).indices
        candidates = self.lists[(hidden.float() @ code.T).argmax(1)]
        panel = F.embedding(candidates, unit.to(hidden.dtype))
        score = self.noise(torch.einsum("nmd,nd->nm", panel, hidden))
        best, position = score.topk(shape.active, dim=1, sorted=False)
        expert = candidates.gather(1, position)
        gate = torch.softmax(best.float(), dim=1)
        y = self.experts(hidden, expert, gate.to(hidden.dtype))
        return self.norm(y).view_as(x), self.balance(expert, gate)

    def experts(self, hidden, expert, gate):
        m = self.shape.expert_dim
        inner = torch.arange(m, device=expert.device)
        row = (expert[:, :, None] * m + inner).flatten(1)
        pre = torch.einsum("nrd,nd->nr", F.embedding(row, self.up.to(hidden.dtype)), hidden)
        weight = F.gelu(pre) * gate.repeat_interleave(m, dim=1)
        return torch.einsum("nr,nrd->nd", weight, F.embedding(row, self.down.to(hidden.dtype)))

    def balance(self, expert, gate):
        flat, n = expert.flatten(), len(expert)
        zeros = torch.zeros(self.shape.experts, device=gate.device)
        used = zeros.index_add(0, flat, torch.ones_like(flat, dtype=torch.float)) / flat.numel()
        mass = zeros.index_add(0, flat, gate.flatten()) / n
        return self.shape.balance_weight * self.shape.experts * (used * mass).sum()


class Block(nn.Module):
    def __init__(self, shape, moe):
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.dim, eps=1e-5)
        self.attention = Attention(shape)
        self.ffn_norm = nn.RMSNorm(shape.dim, eps=1e-5)
        self.ffn = ListingMoe(shape) if moe else SwigluFfn(shape)

    def forward(self, x, turn):
        x = x + self.attention(self.attention_norm(x), turn)
        hidden = self.ffn_norm(x)
        if isinstance(self.ffn, ListingMoe):
            hidden = hidden.to(torch.get_autocast_dtype("cuda"))
        y, loss = self.ffn(hidden)
        return x + y, loss


class LanguageModel(nn.Module):
    def __init__(self, shape, moe):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        middle = shape.layers // 2
        self.blocks = nn.ModuleList(
            Block(shape, moe and i == middle) for i in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim, eps=1e-5)

    def forward(self, tokens, targets, turn):
        x, extra = self.embedding(tokens), 0.0
        for block in self.blocks:
            x, loss = block(x, turn)
            extra = extra + loss
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()) + extra

    def drop_lists(self):
        for block in self.blocks:
            if isinstance(block.ffn, ListingMoe):
                block.ffn.lists = None


class Training:
    """A training step of the model, bf16 autocast, AdamW in one kernel, gradients clipped to 1."""

    def __init__(self, shape, moe, tokens, batch, compiled, seed):
        torch.manual_seed(seed)
        self.model = LanguageModel(shape, moe).cuda()
        if compiled:
            for block in self.model.blocks:  # one by one: equal blocks share what is compiled
                block.compile()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, betas=(0.9, 0.95),
                                           weight_decay=0.1, fused=True)
        self.turn = rope_table(shape, "cuda")
        self.tokens, self.batch, self.context = tokens, batch, shape.context
        self.losses = []

    def step(self, number):
        width = self.context + 1
        starts = len(self.tokens) // width
        at = torch.arange(number * self.batch, (number + 1) * self.batch) % starts
        text = self.tokens[: starts * width].view(starts, width)[at.to(self.tokens.device)]
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = self.model(text[:, :-1], text[:, 1:], self.turn)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.drop_lists()
        self.losses.append(loss.detach())


def text_tokens(paths, vocab, device):
    """Bytes of the files; with a vocabulary above 256, hashes of three bytes in a row, which have
    some of the skew of words."""
    text = b"".join(path.read_bytes() for path in paths)
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device).long()
    if vocab > 256:
        tokens = tokens[:-2] * 65599 + tokens[1:-1] * 257 + tokens[2:]
    return tokens % vocab
