"""PEER's routing: product keys. `heads` queries per token, each the best K / heads of S x S experts,
where S is the square root of their number (rounded up): expert i has the halves i / S and i % S.

query [d, heads * d]; keys [heads * 2, S, d / 2], the first and second halves of each head in turn.
"""

import torch


def side_of(experts):
    return int((experts - 1) ** 0.5) + 1


def random_keys(dim, experts, heads, dtype, device, seed):
    """Query projection and keys, as a layer starts with."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(*shape):
        return (torch.randn(*shape, device=device, generator=generator) * dim**-0.5).to(dtype)

    return normal(dim, heads * dim), normal(heads * 2, side_of(experts), dim // 2)


def table_for(rows, experts, expert_dim):
    """Rows of S x S experts: where that is more than there are, the first ones again."""
    wanted = side_of(experts) ** 2 * expert_dim
    return rows if wanted == len(rows) else torch.cat((rows, rows))[:wanted]


def best_pairs(half, best):
    """Keys of the best sums of a first and a second half [heads, 2, n, S]. The best `best` sums have
    their halves among the best `best` halves. Shape: two of [heads, n, best]"""
    value, key = half.topk(min(best, half.shape[3]), dim=3)
    sums = (value[:, 0, :, :, None] + value[:, 1, :, None, :]).flatten(2)
    position = sums.topk(best, dim=2).indices
    width = value.shape[3]
    first = key[:, 0].gather(2, torch.div(position, width, rounding_mode="floor"))
    return first, key[:, 1].gather(2, position % width)


def route(hidden, query, keys, active):
    """Experts and gates of each token [n, K]; gates of one head add up to 1. The search has no
    gradient, the selected scores have."""
    n, (halves, side, _) = len(hidden), keys.shape
    split = (hidden @ query).view(n, halves, -1).transpose(0, 1)
    half = torch.bmm(split, keys.transpose(1, 2)).view(halves // 2, 2, n, side)
    with torch.no_grad():
        first, second = best_pairs(half.detach(), active // (halves // 2))
    score = half[:, 0].gather(2, first) + half[:, 1].gather(2, second)
    gate = torch.softmax(score.float(), dim=2).to(hidden.dtype)
    expert = first * side + second
    return expert.transpose(0, 1).flatten(1), gate.transpose(0, 1).flatten(1)
