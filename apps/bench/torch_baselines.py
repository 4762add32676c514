#!/usr/bin/env python3
"""The work of an MoE layer, and airmoe's language model, in PyTorch on one GPU.

Data: --data (what `airmoe-bench router --export` writes, or an .npz or HDF5 file with the arrays hidden,
codebook, centroid and, if present, up, down, lists), or clustered states made by its recipe. Times are
medians between device events.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import sys
import typing

try:
    import torch
except ImportError:
    sys.exit("torch_baselines: python3 has no module torch: install PyTorch to run this comparison")

from baselines import ceilings, data, experts, language_model, layer, options as command_line, peer, \
    routing, timing

GIB = 2**30


def relative_error(value, reference):
    value, reference = value.double(), reference.double()
    return ((value - reference).norm() / reference.norm()).item()


def chunk_of(options, element_bytes, per_token):
    """Tokens whose arrays of `per_token` elements fit --memory-gib."""
    return max(1, int(options.memory_gib * GIB / (element_bytes * per_token)))


def run_routing(options, timer, given):
    size = given.unit.element_size()
    whole = chunk_of(options, size, 2 * options.experts)
    panel = chunk_of(options, size, options.shortlist * options.dim)
    keys = peer.random_keys(options.dim, options.experts, options.peer_heads, given.unit.dtype,
                            given.unit.device, options.seed)
    lists, k = given.lists, options.active
    common = (given.codebook, given.unit, lists, k)

    def recall():
        exact = routing.full_scoring(given.hidden[0], given.unit, k, whole)[0]
        some = routing.listing(given.hidden[0], *common, panel)[0]
        hits = torch.zeros(len(exact), options.experts, dtype=torch.bool, device=exact.device)
        value = hits.scatter_(1, exact, True).gather(1, some).float().mean().item()
        return f"holds {value:.2f} of full scoring's experts", {"recall": value}

    def agreement():
        listed = routing.listing(given.hidden[0], *common, panel)[0].sort(1).values
        expert, _, tiles = routing.grouped(given.hidden[0], *common)
        value = (listed[tiles.order] == expert.sort(1).values).float().mean().item()
        return f"{value:.4f} of its experts are the listing's", {"agreement": value}

    def measure(name, way, check=None):
        if any(text in name for text in options.only):
            timer.measure("routing", name, way, check)

    measure("full scoring + top K",
            lambda i: routing.full_scoring(given.hidden[i], given.unit, k, whole))
    measure("paper's listing: gather + einsum + top K",
            lambda i: routing.listing(given.hidden[i], *common, panel), recall)
    measure("grouped by codeword: gather + bmm + top K",
            lambda i: routing.grouped(given.hidden[i], *common), agreement)
    if options.compile:
        fused = torch.compile(routing.listing)
        measure("paper's listing, torch.compile", lambda i: fused(given.hidden[i], *common, panel))
    measure(f"PEER: {options.peer_heads} heads x {k // options.peer_heads}",
            lambda i: peer.route(given.hidden[i], *keys, k))


def run_rebuild(options, timer, given):
    timer.measure("list rebuild", "all lists: product + top M of E",
                  lambda i: routing.list_rebuild(given.codebook, given.unit, options.shortlist))


@dataclasses.dataclass
class Way:
    """A way to do a piece of work; forward and both (forward and backward) take the number of an
    input set and return the outputs, and the gradients."""

    name: str
    forward: typing.Callable
    both: typing.Callable
    comparable: bool = True  # selects the experts that the other ways select


def measure_ways(timer, work, ways, gradients, only):
    """Times the ways whose names have one of the texts `only`; the first of all is the reference for
    outputs and for the named gradients."""
    reference = ways[0].forward(0), ways[0].both(0)

    def difference(way):
        if not way.comparable:
            return "", {}
        value = relative_error(way.forward(0), reference[0])
        return f"differs by {value:.1e}", {"difference": value}

    def differences(way):
        if not way.comparable:
            return "", {}
        values = [relative_error(a, b) for a, b in zip(way.both(0), reference[1])][: len(gradients)]
        return (f"{', '.join(gradients)} differ by " + ", ".join(f"{v:.1e}" for v in values),
                {"differences": values})

    for way in ways:
        if not any(text in way.name for text in only):
            continue
        timer.measure(f"{work} forward", way.name, way.forward, lambda: difference(way))
        timer.measure(f"{work} both ways", way.name, way.both, lambda: differences(way))


class Selected:
    """What the routing found for one input set."""

    def __init__(self, options, given, hidden):
        expert, gate, self.tiles = routing.grouped(hidden, given.codebook, given.unit, given.lists,
                                                   options.active)
        self.position = experts.positions_in_lists(self.tiles, expert, given.lists)
        self.gate_sorted = gate
        self.expert, self.gate = (torch.empty_like(x).index_copy_(0, self.tiles.order, x)
                                  for x in (expert, gate))
        self.row, self.row_gate = experts.table_rows(self.expert, self.gate, options.expert_dim)
        self.hidden = hidden
        self.d_y = torch.randn_like(hidden)


def run_experts(options, timer, given):
    per_token = options.active * options.expert_dim * options.dim
    tokens = chunk_of(options, given.up.element_size(), 2 * per_token)
    pairs = chunk_of(options, 4, 4 * options.dim)
    sets = [Selected(options, given, hidden) for hidden in given.hidden]
    table = experts.ListTable(given.lists, options.expert_dim)

    def by_rows(name, forward, backward, chunk):
        def arguments(s):
            return s.hidden, given.up, given.down, s.row, s.row_gate

        return Way(name, lambda i: forward(*arguments(sets[i]), chunk),
                   lambda i: backward(*arguments(sets[i]), sets[i].d_y, chunk))

    def by_lists(name, forward, backward):
        def arguments(s):
            return s.hidden, given.up, given.down, s.tiles, s.position, s.gate_sorted, table

        return Way(name, lambda i: forward(*arguments(sets[i])),
                   lambda i: backward(*arguments(sets[i]), sets[i].d_y))

    ways = [
        by_rows("token-centric: gather + einsum", experts.token_centric,
                experts.token_centric_backward, tokens),
        by_rows("token-centric: embedding_bag", experts.bagged, experts.bagged_backward, tokens),
        by_rows("expert-centric: pairs sorted by expert", experts.expert_centric,
                experts.expert_centric_backward, pairs),
        by_lists("shortlist as dense products, masked", experts.shortlist_dense,
                 experts.shortlist_dense_backward),
    ]
    if options.compile:
        fused, fused_sorted, fused_sorted_backward, fused_dense = (torch.compile(f) for f in (
            experts.token_centric, experts.expert_centric, experts.expert_centric_backward,
            experts.shortlist_dense))
        ways += [
            by_rows("token-centric, torch.compile", fused,
                    functools.partial(experts.token_centric_backward, forward=fused), tokens),
            by_rows("expert-centric, torch.compile", fused_sorted, fused_sorted_backward, pairs),
            by_lists("shortlist as dense products, torch.compile", fused_dense,
                     functools.partial(experts.shortlist_dense_backward, forward=fused_dense)),
        ]
    measure_ways(timer, "experts", ways, ("d_h", "d_up", "d_down"), options.only)


def run_layer(options, timer, given):
    m, k = options.expert_dim, options.active
    tokens = chunk_of(options, given.up.element_size(), 3 * k * m * options.dim)
    panel = chunk_of(options, given.unit.element_size(), options.shortlist * options.dim)
    pairs = chunk_of(options, 4, 4 * options.dim)
    common = (given.codebook, given.unit, given.lists, k)
    tables = given.unit, given.up, given.down
    d_y = torch.randn_like(given.hidden[0])

    def listing(hidden):
        return routing.listing(hidden, *common, panel)

    def grouped(hidden):
        expert, gate, tiles = routing.grouped(hidden, *common)
        return [torch.empty_like(x).index_copy_(0, tiles.order, x) for x in (expert, gate)]

    def automatic(name, way, way_tables=tables, comparable=True):
        ways = [(name, way)]
        if options.compile:
            ways.append((name + ", torch.compile", torch.compile(way)))
        return [Way(n, lambda i, w=w: layer.forward(w, given.hidden[i], way_tables),
                    lambda i, w=w: layer.both_ways(w, given.hidden[i], way_tables, d_y, tokens),
                    comparable) for n, w in ways]

    def by_expert(name, evaluate, backward):
        return Way(name,
                   lambda i: layer.sorted_forward(given.hidden[i], given.up, given.down, grouped,
                                                  evaluate, m, pairs),
                   lambda i: layer.sorted_both_ways(given.hidden[i], *tables, d_y, grouped,
                                                    backward, m, pairs))

    keys = peer.random_keys(options.dim, options.experts, options.peer_heads, given.unit.dtype,
                            given.unit.device, options.seed)
    own = [peer.table_for(x, options.experts, m) for x in (given.up, given.down)]
    ways = [
        *automatic("paper's listing, token-centric", layer.token_centric(listing, m, tokens)),
        *automatic("grouped routing, token-centric", layer.token_centric(grouped, m, tokens)),
        *automatic("grouped routing, lists as dense products",
                   layer.shortlist_dense(given.codebook, given.lists, k, m)),
        by_expert("grouped routing, sorted by expert", experts.expert_centric,
                  experts.expert_centric_backward),
        *automatic(f"PEER: {options.peer_heads} heads x {k // options.peer_heads}, token-centric",
                   layer.peer_token_centric(k, m, tokens), (*keys, *own), False),
    ]
    if options.compile:
        ways.append(by_expert("grouped routing, sorted by expert, torch.compile",
                              torch.compile(experts.expert_centric),
                              torch.compile(experts.expert_centric_backward)))
    measure_ways(timer, "layer", ways, ("d_h", "d_unit", "d_up", "d_down"), options.only)


def repository_text():
    root = pathlib.Path(__file__).resolve().parents[2]
    paths = sorted(p for suffix in ("md", "cpp", "hpp", "py") for p in root.rglob(f"*.{suffix}")
                   if not any(part.startswith(".") or part == "build"
                              for part in p.relative_to(root).parts))
    return paths


def run_model(options, timer):
    shape = language_model.ModelShape(
        dim=options.dim, context=options.context, vocab=options.vocab, layers=options.layers,
        experts=options.experts, active=options.active, expert_dim=options.expert_dim,
        codewords=options.codewords, shortlist=options.shortlist, peer_heads=options.peer_heads)
    shape.heads = max(1, options.dim // 64)
    shape.kv_heads = max(1, shape.heads // 4)
    shape.ffn_dim = 3 * options.dim
    paths = [pathlib.Path(options.text)] if options.text else repository_text()
    tokens = language_model.text_tokens(paths, options.vocab, "cuda")
    for batch, model, launch in itertools.product(options.batch, options.models, options.launches):
        per_step = batch * options.context
        if len(tokens) < per_step + batch:
            sys.exit(f"torch_baselines: {len(tokens)} tokens of text, a step needs {per_step}: name "
                     "a longer file with --text, or lower --batch")
        name = f"{language_model.NAMES[model]}, {batch} x {options.context} tokens, {launch}"
        run_training(timer, name, per_step,
                     lambda: language_model.Training(shape, model, tokens, batch, launch,
                                                     options.seed))
        if "compile" in launch:
            torch.compiler.reset()


def run_training(timer, name, per_step, start):
    training, steps = None, itertools.count()

    def step(_):
        nonlocal training
        if training is None:
            training = start()
        training.step(next(steps))

    median = timer.measure("training step", name, step)
    if median is not None:
        losses = torch.stack(training.losses).tolist()
        timer.results[-1].update(tokens_per_second=per_step / median * 1e3, losses=losses)
        print(f"{'':20s} {per_step / median * 1e3:,.0f} tokens/s; loss {losses[0]:.3f} first, "
              f"{losses[-1]:.3f} after {len(losses)} steps", flush=True)


def states_and_experts(options):
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]
    if options.data:
        given = data.load(options.data, options, dtype, "cuda", options.seed)
    else:
        given = data.make(options, dtype, "cuda", options.seed)
    print(f"{given.says}\n{options.tokens} tokens, d {options.dim}, E {options.experts}, "
          f"K {options.active}, M {options.shortlist}, G {options.codewords}, "
          f"m {options.expert_dim}")
    used = torch.stack([(h @ given.codebook.T).argmax(1).bincount(minlength=options.codewords)
                        for h in given.hidden])
    print(f"tokens of a codeword: {used.min().item()} to {used.max().item()}")
    return given


def main():
    options = command_line.parse(__doc__)
    if not torch.cuda.is_available():
        sys.exit("torch_baselines: no CUDA device is visible to PyTorch")
    name = torch.cuda.get_device_name()
    print(f"{name}, PyTorch {torch.__version__}, {options.dtype}")
    given = None
    if {"routing", "rebuild", "experts", "layer"} & set(options.parts):
        given = states_and_experts(options)
    timer = timing.Timer(options.repetitions, options.seconds, options.sets)
    runs = {
        "ceilings": lambda: ceilings.measure(timer, options.experts, options.dim),
        "routing": lambda: run_routing(options, timer, given),
        "rebuild": lambda: run_rebuild(options, timer, given),
        "experts": lambda: run_experts(options, timer, given),
        "layer": lambda: run_layer(options, timer, given),
        "model": lambda: run_model(options, timer),
    }
    for part in command_line.PARTS:
        if part not in options.parts:
            continue
        runs[part]()
        if options.json:  # after every part, so that a long run that is stopped leaves something
            kept = {"benchmark": "torch_baselines", "device": name, "torch": torch.__version__,
                    "data": given.says if given else "", "options": vars(options), "results": timer.results}
            pathlib.Path(options.json).write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
