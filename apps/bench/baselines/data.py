"""Token states, codebook and experts: from files, or clustered as airmoe-bench makes them."""

import dataclasses
import glob

import numpy
import torch
import torch.nn.functional as F

KMEANS_ROUNDS = 20
NEEDED = ("hidden", "codebook", "centroid")


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


def normal_rows(shape, generator):
    """Rows of the experts, as a layer starts with. Shape: [E * m, d]"""
    rows = shape.experts * shape.expert_dim
    values = torch.randn(rows, shape.dim, device=generator.device, generator=generator)
    return values * shape.dim**-0.5


def make(shape, dtype, device, seed):
    generator = torch.Generator(device=device).manual_seed(seed)
    states = clustered_states(shape, generator)
    codebook = spherical_kmeans(states, shape.codewords, generator)
    unit = unit_rows(torch.randn(shape.experts, shape.dim, device=device, generator=generator))
    up, down = (normal_rows(shape, generator) for _ in range(2))
    says = (f"clustered states ({shape.clusters} clusters, skew {shape.skew}), k-means codebook, "
            "untrained experts")
    return Data([s.to(dtype) for s in states], codebook.to(dtype), unit.to(dtype),
                best_lists(codebook, unit, shape.shortlist), up.to(dtype), down.to(dtype), says)


def read_arrays(path):
    if path.endswith(".npz"):
        with numpy.load(path) as file:
            return {name: file[name] for name in file.files}
    if path.endswith((".h5", ".hdf5")):
        import h5py  # only for files of this kind

        with h5py.File(path, "r") as file:
            return {name: file[name][()] for name in file if hasattr(file[name], "shape")}
    return {file[len(path) + 1 : -4]: numpy.load(file) for file in glob.glob(path + "-*.npy")}


def load(path, shape, dtype, device, seed):
    """Arrays hidden [sets * n, d], codebook [G, d], centroid [E, d] and, where they are there, up and
    down [E * m, d] and lists [G, M]. Sets `shape` to what they are. `path` is an .npz or HDF5 file, or
    PREFIX of `airmoe-bench router --export PREFIX`."""
    arrays = read_arrays(path)
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise SystemExit(f"--data {path}: no array {', '.join(missing)}; it needs "
                         f"{', '.join(NEEDED)}")

    def tensor(name):
        return torch.from_numpy(numpy.asarray(arrays[name], numpy.float32)).to(device)

    hidden, codebook = tensor("hidden"), unit_rows(tensor("codebook"))
    unit = unit_rows(tensor("centroid"))
    shape.dim, shape.codewords, shape.experts = hidden.shape[1], len(codebook), len(unit)
    shape.tokens = min(shape.tokens, len(hidden))
    shape.sets = min(shape.sets, len(hidden) // shape.tokens)
    if "up" in arrays and "down" in arrays:
        up, down = tensor("up"), tensor("down")
        shape.expert_dim = len(up) // shape.experts
    else:
        generator = torch.Generator(device=device).manual_seed(seed)
        up, down = (normal_rows(shape, generator) for _ in range(2))
    if "lists" in arrays:
        lists = torch.from_numpy(arrays["lists"].astype(numpy.int64)).to(device)
        shape.shortlist = lists.shape[1]
    else:
        lists = best_lists(codebook, unit, shape.shortlist)
    states = list(hidden[: shape.sets * shape.tokens].to(dtype).split(shape.tokens))
    return Data(states, codebook.to(dtype), unit.to(dtype), lists, up.to(dtype), down.to(dtype),
                f"data of {path}")
