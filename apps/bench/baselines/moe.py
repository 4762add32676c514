"""MoE layers of the language model: AIR by the paper's listing, AIR with tokens of one codeword
together, and PEER. Tables are fp32; hidden states have the type that products shall be computed in, and
autocast is off. One micro-batch per optimizer step: lists are built in each forward."""

import torch
import torch.nn.functional as F
from torch import nn

from . import experts, peer, routing


class ExpertTables(nn.Module):
    """The experts, and the norm of their sum."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.up, self.down = (self.table(shape.experts * shape.expert_dim) for _ in range(2))
        self.norm = nn.LayerNorm(shape.dim, eps=1e-12)
        nn.init.constant_(self.norm.weight, 0.1)  # as airmoe: the experts have a say, no more

    def forward(self, x):
        """The output, and the balance loss."""
        with torch.autocast(x.device.type, enabled=False):
            y, loss = self.of_tokens(x.flatten(0, 1))
            return self.norm(y.float()).view_as(x), loss

    def table(self, rows):
        return nn.Parameter(torch.randn(rows, self.shape.dim) * self.shape.dim**-0.5)

    def token_centric(self, hidden, expert, gate):
        row, gate = experts.table_rows(expert, gate.to(hidden.dtype), self.shape.expert_dim)
        return experts.token_centric(hidden, self.up.to(hidden.dtype), self.down.to(hidden.dtype),
                                     row, gate, len(hidden))


class Air(ExpertTables):
    """Per micro-batch a k-means step, lists, and whatever of a list evaluate() selects."""

    def __init__(self, shape):
        super().__init__(shape)
        self.centroid = self.table(shape.experts)
        self.register_buffer("sums", torch.zeros(shape.codewords, shape.dim))
        self.register_buffer("counts", torch.zeros(shape.codewords))

    @torch.no_grad()
    def codebook(self, hidden):
        """Moving averages of the tokens' directions; dead codewords start again from tokens."""
        shape = self.shape
        unit = F.normalize(hidden.float(), dim=1)
        fresh = unit[torch.randperm(len(unit), device=unit.device)[: shape.codewords]]
        first = self.counts.sum() == 0
        sums = torch.where(first, fresh, self.sums)
        counts = torch.where(first, max(1.0, len(unit) / shape.codewords), self.counts)
        nearest = (unit @ F.normalize(sums, dim=1).T).argmax(1)
        keep, one = shape.codebook_decay, torch.ones(len(unit), device=unit.device)
        sums = (sums * keep).index_add(0, nearest, unit, alpha=1 - keep)
        counts = (counts * keep).index_add(0, nearest, one, alpha=1 - keep)
        dead = counts < shape.dead_threshold
        self.sums.copy_(torch.where(dead[:, None], fresh, sums))
        self.counts.copy_(counts.masked_fill(dead, 1.0))
        return F.normalize(self.sums, dim=1)

    def noise(self, score):
        return score + self.shape.jitter * torch.randn_like(score)

    def of_tokens(self, hidden):
        code = self.codebook(hidden).to(hidden.dtype)
        unit = F.normalize(self.centroid, dim=1).to(hidden.dtype)
        with torch.no_grad():
            lists = self.noise(code @ unit.T).topk(self.shape.shortlist, 1, False).indices
        y, expert, gate = self.evaluate(hidden, code, unit, lists)
        return y, self.balance(expert, gate)

    def balance(self, expert, gate):
        flat, n = expert.flatten(), len(expert)
        zeros = torch.zeros(self.shape.experts, device=gate.device)
        used = zeros.index_add(0, flat, torch.ones_like(flat, dtype=torch.float)) / flat.numel()
        mass = zeros.index_add(0, flat, gate.float().flatten()) / n
        return self.shape.balance_weight * self.shape.experts * (used * mass).sum()


class Listing(Air):
    """The paper's listing: gather, einsum and top K per token; experts gathered per token."""

    def evaluate(self, hidden, code, unit, lists):
        candidates = lists[(hidden @ code.T).argmax(1)]
        score = self.noise(torch.einsum("nmd,nd->nm", F.embedding(candidates, unit), hidden))
        best, position = score.topk(self.shape.active, dim=1, sorted=False)
        expert, gate = candidates.gather(1, position), torch.softmax(best.float(), dim=1)
        return self.token_centric(hidden, expert, gate), expert, gate


class Grouped(Air):
    """Tokens of one codeword together: scores and experts of a list as dense products."""

    def evaluate(self, hidden, code, unit, lists):
        tiles = routing.Tiles(hidden.detach(), code)
        candidates = lists[tiles.codeword]
        panel = F.embedding(candidates, unit).transpose(1, 2)
        score = self.noise(tiles.unpad(torch.bmm(tiles.pad(hidden[tiles.order]), panel)))
        best, position = score.topk(self.shape.active, dim=1, sorted=False)
        gate = torch.softmax(best.float(), dim=1)
        y = experts.shortlist_dense(hidden, self.up.to(hidden.dtype), self.down.to(hidden.dtype),
                                    tiles, position, gate.to(hidden.dtype),
                                    experts.ListTable(lists, self.shape.expert_dim))
        return y, candidates[tiles.tile].gather(1, position), gate


class Peer(ExpertTables):
    """Product keys; experts gathered per token. No balance loss, as in its paper."""

    def __init__(self, shape):
        super().__init__(shape)
        side = peer.side_of(shape.experts)
        if side * side != shape.experts:
            raise SystemExit(f"--experts {shape.experts}: PEER needs a square, such as {side * side}")
        query, keys = peer.random_keys(shape.dim, shape.experts, shape.peer_heads, torch.float,
                                       "cpu", 1)
        self.query, self.keys = nn.Parameter(query), nn.Parameter(keys)

    def of_tokens(self, hidden):
        expert, gate = peer.route(hidden, self.query.to(hidden.dtype), self.keys.to(hidden.dtype),
                                  self.shape.active)
        return self.token_centric(hidden, expert, gate), 0.0
