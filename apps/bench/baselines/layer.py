"""A whole MoE layer: routing, then the experts, forward and backward.

A way is a function way(hidden, *tables) = y that automatic differentiation can follow to hidden and
tables. The search for the experts has no gradient; where gradients are wanted, scores of the selected
are computed again from their centroids, which is less than what the paper's listing keeps.

route(hidden) returns experts and gates of each token [n, K], in token order.
"""

import torch
import torch.nn.functional as F

from . import experts, peer, routing


def selected_scores(hidden, unit, expert):
    return torch.einsum("nkd,nd->nk", F.embedding(expert, unit), hidden)


def token_centric(route, expert_dim, chunk):
    """Tables: unit centroids, up, down. Every token gathers the rows of its experts."""

    def way(hidden, unit, up, down):
        with torch.no_grad():
            expert, gate = route(hidden)
        if hidden.requires_grad:
            gate = routing.gates(selected_scores(hidden, unit, expert))
        return experts.token_centric(hidden, up, down, *experts.table_rows(expert, gate, expert_dim),
                                     chunk)

    return way


def shortlist_dense(codebook, lists, active, expert_dim):
    """Tables: unit centroids, up, down. Tokens of one codeword together; scores and experts of a whole
    list as dense products."""
    table = experts.ListTable(lists, expert_dim)

    def way(hidden, unit, up, down):
        tiles = routing.Tiles(hidden.detach(), codebook)
        panel = F.embedding(lists[tiles.codeword], unit)
        score = tiles.unpad(torch.bmm(tiles.pad(hidden[tiles.order]), panel.transpose(1, 2)))
        position = score.detach().topk(active, dim=1, sorted=False).indices
        gate = routing.gates(score.gather(1, position))
        return experts.shortlist_dense(hidden, up, down, tiles, position, gate, table)

    return way


def peer_token_centric(active, expert_dim, chunk):
    """Tables: query projection, keys, up, down."""

    def way(hidden, query, keys, up, down):
        row, gate = experts.table_rows(*peer.route(hidden, query, keys, active), expert_dim)
        return experts.token_centric(hidden, up, down, row, gate, chunk)

    return way


def forward(way, hidden, tables):
    with torch.no_grad():
        return way(hidden, *tables)


def both_ways(way, hidden, tables, d_y, chunk):
    """Forward, and backward by automatic differentiation, `chunk` tokens at a time: the gradients of
    hidden and of the tables."""
    tables = [x.detach().requires_grad_() for x in tables]
    d_hidden, sums = [], None
    for h, d in zip(hidden.split(chunk), d_y.split(chunk)):
        h = h.detach().requires_grad_()
        first, *rest = torch.autograd.grad(way(h, *tables), [h, *tables], d)
        d_hidden.append(first)
        sums = rest if sums is None else [a + b for a, b in zip(sums, rest)]
    return [torch.cat(d_hidden), *sums]


# Pairs sorted by expert: forward and backward written out, gradients of rows as sums over segments.


def sorted_forward(hidden, up, down, route, evaluate, expert_dim, chunk):
    row, gate = experts.table_rows(*route(hidden), expert_dim)
    return evaluate(hidden, up, down, row, gate, chunk)


def sorted_both_ways(hidden, unit, up, down, d_y, route, evaluate, expert_dim, chunk):
    """`evaluate` as experts.expert_centric_backward."""
    expert, gate = route(hidden)
    row, row_gate = experts.table_rows(expert, gate, expert_dim)
    d_hidden, d_up, d_down, d_row_gate = evaluate(hidden, up, down, row, row_gate, d_y, chunk)
    d_gate = d_row_gate.unflatten(1, (-1, expert_dim)).sum(2)
    d_score = gate * (d_gate - (gate * d_gate).sum(1, keepdim=True))
    d_hidden = d_hidden + F.embedding_bag(expert, unit, mode="sum", per_sample_weights=d_score)
    pairs = experts.SortedPairs(expert, len(unit))
    d_unit = experts.segment_sums(pairs, hidden, d_score.flatten()[pairs.pair])
    return [d_hidden, d_unit, d_up, d_down]
