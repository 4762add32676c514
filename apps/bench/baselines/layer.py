"""A whole MoE layer: routing, then the experts, forward, and backward to hidden states, centroids, up
and down rows. The search for the experts has no gradient; scores of the selected are computed again
where automatic differentiation needs them, which is less than what the paper's listing keeps.

route(hidden) returns experts and gates of each token [n, K], in token order.
"""

import torch
import torch.nn.functional as F

from . import experts


def forward(hidden, up, down, route, evaluate, expert_dim, chunk):
    row, gate = experts.table_rows(*route(hidden), expert_dim)
    return evaluate(hidden, up, down, row, gate, chunk)


def selected_scores(hidden, unit, expert):
    return torch.einsum("nkd,nd->nk", F.embedding(expert, unit), hidden)


def token_centric_backward(hidden, unit, up, down, d_y, route, evaluate, expert_dim, chunk):
    """Forward and backward by automatic differentiation; every token gathers its rows."""
    expert, _ = route(hidden)
    tables = [x.detach().requires_grad_() for x in (unit, up, down)]
    d_hidden, sums = [], None
    for h, e, d in zip(*(x.split(chunk) for x in (hidden, expert, d_y))):
        h = h.detach().requires_grad_()
        gate = torch.softmax(selected_scores(h, tables[0], e).float(), dim=1).to(h.dtype)
        row, gate = experts.table_rows(e, gate, expert_dim)
        y = evaluate(h, tables[1], tables[2], row, gate, chunk)
        first, *rest = torch.autograd.grad(y, [h, *tables], d)
        d_hidden.append(first)
        sums = rest if sums is None else [a + b for a, b in zip(sums, rest)]
    return [torch.cat(d_hidden), *sums]


def expert_centric_backward(hidden, unit, up, down, d_y, route, evaluate, expert_dim, chunk):
    """Forward and backward with pairs sorted by expert; `evaluate` as
    experts.expert_centric_backward."""
    expert, gate = route(hidden)
    row, row_gate = experts.table_rows(expert, gate, expert_dim)
    d_hidden, d_up, d_down, d_row_gate = evaluate(hidden, up, down, row, row_gate, d_y, chunk)
    d_gate = d_row_gate.unflatten(1, (-1, expert_dim)).sum(2)
    d_score = gate * (d_gate - (gate * d_gate).sum(1, keepdim=True))
    d_hidden = d_hidden + F.embedding_bag(expert, unit, mode="sum", per_sample_weights=d_score)
    pairs = experts.SortedPairs(expert, len(unit))
    d_unit = experts.segment_sums(pairs, hidden, d_score.flatten()[pairs.pair])
    return [d_hidden, d_unit, d_up, d_down]
