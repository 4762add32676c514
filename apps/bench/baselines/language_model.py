"""airmoe's language model (scheduler/model_config.hpp) in PyTorch: RMSNorm, grouped-query attention,
RoPE, SwiGLU, tied embedding; the middle layer's FFN dense, or an MoE layer."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from . import moe


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
    peer_heads: int = 8
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


#: what stands in the middle layer's place of the FFN
NAMES = {"dense": "dense FFN", "listing": "AIR by the paper's listing",
         "grouped": "AIR, lists as dense products", "peer": "PEER"}
MIDDLE = {"dense": SwigluFfn, "listing": moe.Listing, "grouped": moe.Grouped, "peer": moe.Peer}


class Block(nn.Module):
    def __init__(self, shape, ffn):
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.dim, eps=1e-5)
        self.attention = Attention(shape)
        self.ffn_norm = nn.RMSNorm(shape.dim, eps=1e-5)
        self.ffn = MIDDLE[ffn](shape)

    def forward(self, x, turn):
        x = x + self.attention(self.attention_norm(x), turn)
        hidden = self.ffn_norm(x).to(torch.get_autocast_dtype("cuda"))
        y, loss = self.ffn(hidden)
        return x + y, loss


class Head(nn.Module):
    """Logits by the embedding's rows, and their loss."""

    def __init__(self, shape):
        super().__init__()
        self.norm = nn.RMSNorm(shape.dim, eps=1e-5)

    def forward(self, x, embedding, targets):
        logits = F.linear(self.norm(x), embedding)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class LanguageModel(nn.Module):
    def __init__(self, shape, middle):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            Block(shape, middle if i == shape.layers // 2 else "dense")
            for i in range(shape.layers))
        self.head = Head(shape)

    def forward(self, tokens, targets, turn):
        x, extra = self.embedding(tokens), 0.0
        for block in self.blocks:
            x, loss = block(x, turn)
            extra = extra + loss
        return self.head(x, self.embedding.weight, targets) + extra


@dataclasses.dataclass
class Launch:
    """How a training step gets to the device."""

    compiled: str = None  # what torch.compile gets: None, "blocks" or "model"
    mode: str = None  # torch.compile's
    graph: bool = False  # the whole step, optimizer included, as one CUDA graph


LAUNCHES = {
    "eager": Launch(),
    "graph": Launch(graph=True),
    "compile": Launch("blocks"),
    "compile-graph": Launch("blocks", graph=True),
    "compile-reduce-overhead": Launch("model", "reduce-overhead"),
}


class Training:
    """A training step of the model, bf16 autocast, AdamW in one kernel, gradients clipped to 1."""

    def __init__(self, shape, middle, tokens, batch, launch, seed):
        self.launch = LAUNCHES[launch]
        torch.manual_seed(seed)
        self.model = LanguageModel(shape, middle).cuda()
        if self.launch.compiled == "blocks":  # one by one: equal blocks share what is compiled
            for part in (*self.model.blocks, self.model.head):
                part.compile()
        elif self.launch.compiled == "model":
            self.model.compile(mode=self.launch.mode)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, betas=(0.9, 0.95),
                                           weight_decay=0.1, fused=True, capturable=self.launch.graph)
        self.turn = rope_table(shape, "cuda")
        width = shape.context + 1
        self.rows = tokens[: len(tokens) // width * width].view(-1, width)
        self.text = torch.empty(batch, width, dtype=tokens.dtype, device=tokens.device)
        self.graph, self.loss, self.losses = None, None, []

    def work(self):
        if self.launch.mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = self.model(self.text[:, :-1], self.text[:, 1:], self.turn)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def step(self, number):
        batch = len(self.text)
        at = torch.arange(number * batch, (number + 1) * batch, device=self.rows.device)
        torch.index_select(self.rows, 0, at % len(self.rows), out=self.text)
        if not self.launch.graph:
            self.losses.append(self.work().clone())
            return
        if self.graph is None:
            self.capture()
        self.graph.replay()
        self.losses.append(self.loss.clone())

    def capture(self):
        """Some steps as they are, on a stream of their own, as capturing wants; then the graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.work()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.work()


def text_tokens(paths, vocab, device):
    """Bytes of the files; with a vocabulary above 256, hashes of three bytes in a row, which have
    some of the skew of words."""
    text = b"".join(path.read_bytes() for path in paths)
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device).long()
    if vocab > 256:
        tokens = tokens[:-2] * 65599 + tokens[1:-1] * 257 + tokens[2:]
    return tokens % vocab
