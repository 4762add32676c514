"""Token states, codebook and experts: from a file, or clustered as airmoe-bench makes them."""

import dataclasses

import numpy
import torch
import torch.nn.functional as F

KMEANS_ROUNDS = 20
ARRAYS = ("hidden", "codebook", "centroid", "up", "down")


@dataclasses.dataclass
class Data:
    """Tensors on the device, of the compute type; c = codewords, rows = experts * expert_dim."""

    hidden: list  # input sets, each [n, d]
    codebook: torch.Tensor  # unit codewords, [G, d]
    unit: torch.Tensor  # unit centroids, [E, d]
    lists: torch.Tensor  # expert ids of each codeword, ascending, [G, M], int64
    up: torch.Tensor  # [rows, d]
    down: torch.Tensor  # [rows, d]
    says: str  # where it is from


def unit_rows(x):
    return F.normalize(x.float(), dim=1)


def best_lists(codebook, unit, shortlist):
    """Top `shortlist` experts of each codeword over all experts, ids ascending. Shape: [G, M]"""
    score = codebook.float() @ unit.float().T
    return score.topk(shortlist, dim=1, sorted=False).indices.sort(dim=1).values


def clustered_states(shape, generator):
    """Tokens as a trained RMSNorm leaves them: |h| = sqrt(d), cosine to a cluster's centre about
    0.8. Cluster r is chosen with a probability proportional to (r + 1)^-skew."""
    device = generator.device
    centre = torch.randn(shape.clusters, shape.dim, device=device, generator=generator)
    rank = torch.arange(1, shape.clusters + 1, device=device, dtype=torch.float64)
    share = rank.pow(-shape.skew)

    def draw():
        pick = torch.multinomial(share, shape.tokens, replacement=True, generator=generator)
        noise = torch.randn(shape.tokens, shape.dim, device=device, generator=generator)
        return unit_rows(centre[pick] + 0.75 * noise) * shape.dim**0.5

    return [draw() for _ in range(shape.sets)]


def spherical_kmeans(states, codewords, generator):
    """Codewords from tokens; empty ones start again from another token. Shape: [G, d], unit rows"""
    points = unit_rows(torch.cat(states))
    start = torch.randperm(len(points), device=points.device, generator=generator)
    if len(points) < codewords:
        raise SystemExit(f"--codewords {codewords}: only {len(points)} tokens; lower it")
    codebook = points[start[:codewords]].clone()
    for _ in range(KMEANS_ROUNDS):
        nearest = torch.cat([(p @ codebook.T).argmax(1) for p in points.split(16384)])
        sums = torch.zeros_like(codebook).index_add_(0, nearest, points)
        empty = sums.square().sum(1) == 0
        fresh = torch.randint(len(points), (codewords,), device=points.device, generator=generator)
        codebook = unit_rows(torch.where(empty[:, None], points[fresh], sums))
    return codebook


def make(shape, dtype, device, seed):
    generator = torch.Generator(device=device).manual_seed(seed)
    states = clustered_states(shape, generator)
    codebook = spherical_kmeans(states, shape.codewords, generator)
    rows = shape.experts * shape.expert_dim

    def normal(count):
        return torch.randn(count, shape.dim, device=device, generator=generator) * shape.dim**-0.5

    unit = unit_rows(normal(shape.experts))
    says = (f"clustered states ({shape.clusters} clusters, skew {shape.skew}), k-means codebook, "
            "untrained experts")
    return Data([s.to(dtype) for s in states], codebook.to(dtype), unit.to(dtype),
                best_lists(codebook, unit, shape.shortlist), normal(rows).to(dtype),
                normal(rows).to(dtype), says)


def read_arrays(path):
    if path.endswith(".npz"):
        with numpy.load(path) as file:
            return {name: file[name] for name in file.files}
    import h5py  # only for files of this kind

    with h5py.File(path, "r") as file:
        return {name: file[name][()] for name in file if hasattr(file[name], "shape")}


def load(path, shape, dtype, device):
    """Arrays hidden [sets * n, d], codebook [G, d], centroid [E, d], up and down [E * m, d], and
    lists [G, M] if present, of an .npz or HDF5 file. Sets `shape` to what the file holds."""
    arrays = read_arrays(path)
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise SystemExit(f"--data {path}: no array {', '.join(missing)}; it needs "
                         f"{', '.join(ARRAYS)}")
    tensor = {name: torch.from_numpy(numpy.asarray(arrays[name], numpy.float32)).to(device)
              for name in ARRAYS}
    hidden = tensor["hidden"]
    shape.dim = hidden.shape[1]
    shape.tokens = min(shape.tokens, len(hidden))
    shape.sets = min(shape.sets, len(hidden) // shape.tokens)
    shape.codewords, shape.experts = len(tensor["codebook"]), len(tensor["centroid"])
    shape.expert_dim = len(tensor["up"]) // shape.experts
    codebook, unit = unit_rows(tensor["codebook"]), unit_rows(tensor["centroid"])
    if "lists" in arrays:
        lists = torch.from_numpy(arrays["lists"].astype(numpy.int64)).to(device)
        shape.shortlist = lists.shape[1]
    else:
        lists = best_lists(codebook, unit, shape.shortlist)
    states = list(hidden[: shape.sets * shape.tokens].to(dtype).split(shape.tokens))
    says = arrays["says"].item() if "says" in arrays else "unnamed"
    says = says.decode() if isinstance(says, bytes) else str(says)
    return Data(states, codebook.to(dtype), unit.to(dtype), lists, tensor["up"].to(dtype),
                tensor["down"].to(dtype), f"{path}: {says}")
