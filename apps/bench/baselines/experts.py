"""Ways to evaluate the selected experts, y = sum of gate * gelu(<h, up>) * down over the rows of the
selected experts, forward and backward.

All take row [n, R], the table rows of each token's experts (R = K * m), and gate [n, R]. Backward
functions return the gradients of hidden, up, down and gate for the gradient d_y of y.
"""

import torch
import torch.nn.functional as F


def table_rows(expert, gate, expert_dim):
    """Rows and gates of a table with expert_dim rows per expert."""
    if expert_dim == 1:
        return expert, gate
    inner = torch.arange(expert_dim, device=expert.device)
    row = (expert[:, :, None] * expert_dim + inner).flatten(1)
    return row, gate.repeat_interleave(expert_dim, dim=1)


def gelu_slope(x):
    x = x.float()
    density = torch.exp(-0.5 * x * x) * 0.3989422804014327
    return 0.5 * (1 + torch.erf(x * 0.7071067811865476)) + x * density


# Token-centric: every token gathers its rows.


def token_centric(hidden, up, down, row, gate, chunk):
    out = []
    for h, r, g in zip(hidden.split(chunk), row.split(chunk), gate.split(chunk)):
        pre = torch.einsum("nrd,nd->nr", F.embedding(r, up), h)
        out.append(torch.einsum("nr,nrd->nd", F.gelu(pre) * g, F.embedding(r, down)))
    return torch.cat(out)


def token_centric_backward(hidden, up, down, row, gate, d_y, chunk, forward=token_centric):
    """Forward and backward by automatic differentiation."""
    d_hidden, d_gate, d_up, d_down = [], [], None, None
    up, down = up.detach().requires_grad_(), down.detach().requires_grad_()
    for h, r, g, d in zip(*(x.split(chunk) for x in (hidden, row, gate, d_y))):
        h, g = h.detach().requires_grad_(), g.detach().requires_grad_()
        y = forward(h, up, down, r, g, chunk)
        gradients = torch.autograd.grad(y, (h, up, down, g), d)
        d_hidden.append(gradients[0])
        d_up = gradients[1] if d_up is None else d_up + gradients[1]
        d_down = gradients[2] if d_down is None else d_down + gradients[2]
        d_gate.append(gradients[3])
    return torch.cat(d_hidden), d_up, d_down, torch.cat(d_gate)


# Expert-centric: pairs sorted by row, as the common libraries group them by expert.


class SortedPairs:
    def __init__(self, row, rows):
        self.row, self.pair = row.flatten().to(torch.int32).sort(stable=True)
        self.token = torch.div(self.pair, row.shape[1], rounding_mode="floor")
        edges = torch.arange(rows + 1, device=row.device, dtype=torch.int32)
        self.offset = torch.searchsorted(self.row, edges)

    def parts(self, chunk):
        """Pieces of (row, pair, token) of `chunk` pairs."""
        return zip(self.row.split(chunk), self.pair.split(chunk), self.token.split(chunk))


def row_dots(left, right):
    return (left * right).sum(1, dtype=torch.float32)


def expert_centric(hidden, up, down, row, gate, chunk):
    pairs = SortedPairs(row, len(up))
    out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    flat_gate = gate.flatten()
    for r, p, t in pairs.parts(chunk):
        weight = F.gelu(row_dots(hidden[t], up[r])) * flat_gate[p]
        out.index_add_(0, t, weight[:, None] * down[r].float())
    return out.to(hidden.dtype)


def segment_sums(pairs, values, weight):
    """Of each row: the sum over its pairs of weight * the pair's token's values. Shape: [rows, d]"""
    return F.embedding_bag(pairs.token, values, pairs.offset[:-1].long(), mode="sum",
                           per_sample_weights=weight.to(values.dtype))


def expert_centric_backward(hidden, up, down, row, gate, d_y, chunk):
    """Forward and backward; gradients of the rows as sums over segments of the sorted pairs."""
    pairs = SortedPairs(row, len(up))
    n = row.numel()
    scaled, d_pre, d_gate = (torch.empty(n, device=row.device) for _ in range(3))
    out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    d_hidden = torch.zeros_like(out)
    flat_gate = gate.flatten().float()
    first = 0
    for r, p, t in pairs.parts(chunk):
        here = slice(first, first + len(r))
        first += len(r)
        up_rows, down_rows = up[r], down[r]
        pre = row_dots(hidden[t], up_rows)
        value = F.gelu(pre)
        scaled[here] = value * flat_gate[p]
        out.index_add_(0, t, scaled[here, None] * down_rows)
        d_value = row_dots(d_y[t], down_rows)
        d_gate[p] = d_value * value
        d_pre[here] = d_value * flat_gate[p] * gelu_slope(pre)
        d_hidden.index_add_(0, t, d_pre[here, None] * up_rows)
    d_up = segment_sums(pairs, hidden, d_pre)
    d_down = segment_sums(pairs, d_y, scaled)
    return d_hidden.to(hidden.dtype), d_up, d_down, d_gate.view_as(gate).to(gate.dtype)


# The fastest that we know from PyTorch's own operations: nothing of size pairs x d but one gather.


def bagged(hidden, up, down, row, gate, chunk):
    pre = torch.cat([torch.bmm(up[r], h[:, :, None])[:, :, 0]
                     for h, r in zip(hidden.split(chunk), row.split(chunk))])
    return F.embedding_bag(row, down, mode="sum", per_sample_weights=F.gelu(pre) * gate)


def bagged_backward(hidden, up, down, row, gate, d_y, chunk):
    dots = []
    for table, values in ((up, hidden), (down, d_y)):
        dots.append(torch.cat([torch.bmm(table[r], v[:, :, None])[:, :, 0]
                               for v, r in zip(values.split(chunk), row.split(chunk))]))
    pre, d_value = dots
    value = F.gelu(pre)
    scaled = value * gate
    F.embedding_bag(row, down, mode="sum", per_sample_weights=scaled)  # the forward's output
    d_pre = (d_value * gate * gelu_slope(pre)).to(gate.dtype)
    d_hidden = F.embedding_bag(row, up, mode="sum", per_sample_weights=d_pre)
    pairs = SortedPairs(row, len(up))
    d_up = segment_sums(pairs, hidden, d_pre.flatten()[pairs.pair])
    d_down = segment_sums(pairs, d_y, scaled.flatten()[pairs.pair])
    return d_hidden, d_up, d_down, d_value * value


# All candidates of a codeword as dense products, with gates of zero where not selected.


class ListTable:
    """Rows of the tables for each codeword's list."""

    def __init__(self, lists, expert_dim):
        inner = torch.arange(expert_dim, device=lists.device)
        self.row = (lists[:, :, None] * expert_dim + inner).flatten(1)
        self.expert_dim = expert_dim


def shortlist_dense(hidden, up, down, tiles, position, gate, table):
    """position [n, K] in the list of the token's codeword; position and gate in the order of
    codewords. The output is in token order."""
    row = table.row[tiles.codeword]
    mask = torch.zeros(len(hidden), row.shape[1] // table.expert_dim, dtype=gate.dtype,
                       device=gate.device).scatter(1, position, gate)
    pre = torch.bmm(tiles.pad(hidden[tiles.order]), F.embedding(row, up).transpose(1, 2))
    weight = F.gelu(pre) * tiles.pad(mask.repeat_interleave(table.expert_dim, dim=1))
    sorted_out = tiles.unpad(torch.bmm(weight, F.embedding(row, down)))
    return torch.empty_like(hidden).index_copy(0, tiles.order, sorted_out)


def shortlist_dense_backward(hidden, up, down, tiles, position, gate, table, d_y,
                             forward=shortlist_dense):
    leaves = [x.detach().requires_grad_() for x in (hidden, up, down, gate)]
    h, u, v, g = leaves
    return torch.autograd.grad(forward(h, u, v, tiles, position, g, table), leaves, d_y)


def positions_in_lists(tiles, expert, lists):
    """Position of each selected expert in its token's list (ids ascending). Shape: [n, K]"""
    return torch.searchsorted(lists[tiles.codeword[tiles.tile]], expert.contiguous())
