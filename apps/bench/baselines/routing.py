"""Ways to find the top K experts of each token, and the gates. n tokens, d width, E experts.

Every function returns expert ids [n, K] and gates [n, K], experts of a token in no order; grouped()
returns them in the order of codewords, with that order.
"""

import torch

TILE = 32


def gates(score):
    return torch.softmax(score.float(), dim=1).to(score.dtype)


def full_scoring(hidden, unit, active, chunk):
    """All experts for every token: a matrix product and top K of E."""
    expert, gate = [], []
    for part in hidden.split(chunk):
        score, position = (part @ unit.T).topk(active, dim=1, sorted=False)
        expert.append(position)
        gate.append(gates(score))
    return torch.cat(expert), torch.cat(gate)


def listing(hidden, codebook, unit, lists, active, chunk):
    """The paper's listing: each token gathers the centroids of its list, a product per token."""
    expert, gate = [], []
    for part in hidden.split(chunk):
        candidates = lists[(part @ codebook.T).argmax(1)]
        panel = unit[candidates]
        score = torch.einsum("nmd,nd->nm", panel, part)
        best, position = score.topk(active, dim=1, sorted=False)
        expert.append(candidates.gather(1, position))
        gate.append(gates(best))
    return torch.cat(expert), torch.cat(gate)


class Tiles:
    """Tokens sorted by codeword and cut into tiles of TILE rows, each tile of one codeword. The
    number of tiles is a bound that is known beforehand: no wait for the device."""

    def __init__(self, hidden, codebook):
        n, codewords = len(hidden), len(codebook)
        codeword, self.order = (hidden @ codebook.T).argmax(1).sort(stable=True)
        count = torch.zeros(codewords, dtype=torch.int64, device=hidden.device)
        count.index_add_(0, codeword, torch.ones_like(codeword))
        tiles = (count + TILE - 1) // TILE
        end, last = tiles.cumsum(0), count.cumsum(0)
        self.bound = n // TILE + min(codewords, n)
        number = torch.arange(self.bound, device=hidden.device)
        self.codeword = torch.searchsorted(end, number, right=True).clamp(max=codewords - 1)
        place = torch.arange(n, device=hidden.device) - (last - count)[codeword]
        #: row of each token, in the order of codewords, among the rows of all tiles. Shape: [n]
        self.row = (end - tiles)[codeword] * TILE + place
        #: tile of each token, in the order of codewords. Shape: [n]
        self.tile = torch.div(self.row, TILE, rounding_mode="floor")

    def pad(self, values):
        """Rows in the order of codewords, laid into tiles. Shape: [bound, TILE, columns]"""
        padded = values.new_zeros(self.bound * TILE, values.shape[1])
        return padded.index_copy(0, self.row, values).view(self.bound, TILE, -1)

    def unpad(self, padded):
        return padded.flatten(0, 1)[self.row]


def grouped(hidden, codebook, unit, lists, active):
    """Tokens of one codeword together: panel gather, batched product, top K of M."""
    tiles = Tiles(hidden, codebook)
    candidates = lists[tiles.codeword]
    score = torch.bmm(tiles.pad(hidden[tiles.order]), unit[candidates].transpose(1, 2))
    best, position = tiles.unpad(score).topk(active, dim=1, sorted=False)
    expert = candidates[tiles.tile].gather(1, position)
    return expert, gates(best), tiles


def list_rebuild(codebook, unit, shortlist):
    """Top M of E per codeword, ids ascending."""
    best = (codebook @ unit.T).topk(shortlist, dim=1, sorted=False).indices
    return best.sort(dim=1).values
