#!/usr/bin/env python3
"""The work of an MoE layer, and airmoe's language model, in PyTorch on one GPU.

Data: --data (what `airmoe-bench router --export` writes, or an .npz or HDF5 file with the arrays hidden,
codebook, centroid and, if present, up, down, lists), or clustered states made by its recipe. Times are medians between device events.
"""

import argparse
import json
import pathlib
import sys

try:
    import torch
except ImportError:
    sys.exit("torch_baselines: python3 has no module torch: install PyTorch to run this comparison")

from baselines import ceilings, data, experts, language_model, layer, routing, timing

PARTS = ("ceilings", "routing", "rebuild", "experts", "layer", "model")
GIB = 2**30


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)

    def count(name, value, text):
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N",
                            help=f"{text} (={value})")

    count("tokens", 8192, "tokens of a step")
    count("dim", 256, "width d")
    count("experts", 65536, "experts E")
    count("active", 512, "selected experts K of a token")
    count("shortlist", 2048, "candidates M of a codeword")
    count("codewords", 512, "codewords G")
    count("expert-dim", 1, "hidden width m of an expert")
    count("clusters", 512, "clusters of the made states")
    parser.add_argument("--skew", type=float, default=0.5, metavar="X",
                        help="cluster r has a share proportional to (r + 1)^-X (=0.5)")
    count("sets", 4, "input sets, used in turn")
    count("peer-heads", 8, "heads of product-key routing")
    count("repetitions", 20, "timed calls")
    count("batch", 8, "sequences of a training step")
    count("context", 1024, "tokens of a sequence")
    count("vocab", 256, "vocabulary of the language model")
    count("layers", 16, "layers of the language model")
    count("seed", 1, "seed")
    parser.add_argument("--seconds", type=float, default=4, metavar="S",
                        help="at most about this long per measurement, once 5 calls are made (=4)")
    parser.add_argument("--memory-gib", type=float, default=24, metavar="X",
                        help="largest gathered array (=24)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="(=bf16)")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="LIST",
                        help=f"of {','.join(PARTS)} (all)")
    parser.add_argument("--compile", action="store_true",
                        help="measure under torch.compile, too, what gains by it")
    parser.add_argument("--data", metavar="PREFIX", help="states and experts")
    parser.add_argument("--text", metavar="FILE", help="text to train on (this repository's)")
    parser.add_argument("--json", metavar="FILE", help="keep the results")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"--parts: {part} is not one of {', '.join(PARTS)}")
    if not 0 < options.active <= options.shortlist <= options.experts:
        parser.error(f"--active {options.active} --shortlist {options.shortlist} --experts "
                     f"{options.experts}: need 0 < active <= shortlist <= experts")
    return options


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
    peer = routing.Peer(options.dim, options.experts, options.active, options.peer_heads,
                        given.unit.dtype, given.unit.device, options.seed)
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

    timer.measure("routing", "full scoring + top K",
                  lambda i: routing.full_scoring(given.hidden[i], given.unit, k, whole))
    timer.measure("routing", "paper's listing: gather + einsum + top K",
                  lambda i: routing.listing(given.hidden[i], *common, panel), recall)
    timer.measure("routing", "grouped by codeword: gather + bmm + top K",
                  lambda i: routing.grouped(given.hidden[i], *common), agreement)
    if options.compile:
        fused = torch.compile(routing.listing)
        timer.measure("routing", "paper's listing, torch.compile",
                      lambda i: fused(given.hidden[i], *common, panel))
    timer.measure("routing", f"PEER: {options.peer_heads} heads x {peer.best}",
                  lambda i: peer(given.hidden[i]))


def run_rebuild(options, timer, given):
    timer.measure("list rebuild", "all lists: product + top M of E",
                  lambda i: routing.list_rebuild(given.codebook, given.unit, options.shortlist))


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
    up, down = given.up, given.down

    def arguments(i):
        return sets[i].hidden, up, down, sets[i].row, sets[i].row_gate

    def dense(i):
        s = sets[i]
        return s.hidden, up, down, s.tiles, s.position, s.gate_sorted, table

    ways = (
        ("token-centric: gather + einsum", lambda i: experts.token_centric(*arguments(i), tokens),
         lambda i: experts.token_centric_backward(*arguments(i), sets[i].d_y, tokens)),
        ("token-centric: embedding_bag", lambda i: experts.bagged(*arguments(i), tokens),
         lambda i: experts.bagged_backward(*arguments(i), sets[i].d_y, tokens)),
        ("expert-centric: pairs sorted by expert",
         lambda i: experts.expert_centric(*arguments(i), pairs),
         lambda i: experts.expert_centric_backward(*arguments(i), sets[i].d_y, pairs)),
        ("shortlist as dense products, masked", lambda i: experts.shortlist_dense(*dense(i)),
         lambda i: experts.shortlist_dense_backward(*dense(i), sets[i].d_y)),
    )
    if options.compile:
        fused = torch.compile(experts.token_centric)
        fused_sorted = torch.compile(experts.expert_centric)
        fused_both = torch.compile(experts.expert_centric_backward)
        ways += (
            ("token-centric, torch.compile", lambda i: fused(*arguments(i), tokens),
             lambda i: experts.token_centric_backward(*arguments(i), sets[i].d_y, tokens, fused)),
            ("expert-centric, torch.compile", lambda i: fused_sorted(*arguments(i), pairs),
             lambda i: fused_both(*arguments(i), sets[i].d_y, pairs)),
        )
    reference = ways[0][1](0)
    gradients = ways[0][2](0)

    def difference(forward):
        value = relative_error(forward(0), reference)
        return f"differs by {value:.1e}", {"difference": value}

    def differences(backward):
        values = [relative_error(a, b) for a, b in zip(backward(0)[:3], gradients)]
        return ("d_h, d_up, d_down differ by " + ", ".join(f"{v:.1e}" for v in values),
                {"differences": values})

    for name, forward, backward in ways:
        timer.measure("experts forward", name, forward, lambda: difference(forward))
        timer.measure("experts both ways", name, backward, lambda: differences(backward))


def run_layer(options, timer, given):
    m, k = options.expert_dim, options.active
    tokens = chunk_of(options, given.up.element_size(), 3 * k * m * options.dim)
    panel = chunk_of(options, given.unit.element_size(), options.shortlist * options.dim)
    pairs = chunk_of(options, 4, 4 * options.dim)
    common = (given.codebook, given.unit, given.lists, k)
    d_y = torch.randn_like(given.hidden[0])

    def listing(hidden):
        return routing.listing(hidden, *common, panel)

    def grouped(hidden):
        expert, gate, tiles = routing.grouped(hidden, *common)
        return (torch.empty_like(x).index_copy_(0, tiles.order, x) for x in (expert, gate))

    compiled = torch.compile if options.compile else lambda function: function
    gathered, by_expert = compiled(experts.token_centric), compiled(experts.expert_centric)
    by_expert_backward = compiled(experts.expert_centric_backward)
    suffix = ", torch.compile" if options.compile else ""
    ways = (
        ("paper's listing, token-centric", listing, experts.token_centric,
         layer.token_centric_backward, experts.token_centric, tokens),
        ("grouped routing, token-centric" + suffix, grouped, gathered,
         layer.token_centric_backward, gathered, tokens),
        ("grouped routing, sorted by expert" + suffix, grouped, by_expert,
         layer.expert_centric_backward, by_expert_backward, pairs),
    )
    reference = None
    for name, route, evaluate, backward, evaluate_both, chunk in ways:
        def forward(i):
            return layer.forward(given.hidden[i], given.up, given.down, route, evaluate, m, chunk)

        def both(i):
            return backward(given.hidden[i], given.unit, given.up, given.down, d_y, route,
                            evaluate_both, m, chunk)

        def differences():
            nonlocal reference
            values = both(0)
            reference = reference or values
            errors = [relative_error(a, b) for a, b in zip(values, reference)]
            return ("d_h, d_unit, d_up, d_down differ by " + ", ".join(f"{e:.1e}" for e in errors),
                    {"differences": errors})

        timer.measure("layer forward", name, forward)
        timer.measure("layer both ways", name, both, differences)


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
        codewords=options.codewords, shortlist=options.shortlist)
    shape.heads = max(1, options.dim // 64)
    shape.kv_heads = max(1, shape.heads // 4)
    shape.ffn_dim = 3 * options.dim
    paths = [pathlib.Path(options.text)] if options.text else repository_text()
    tokens = language_model.text_tokens(paths, options.vocab, "cuda")
    per_step = options.batch * options.context
    if len(tokens) < per_step + options.batch:
        sys.exit(f"torch_baselines: {len(tokens)} tokens of text, a step needs {per_step}: name a "
                 "longer file with --text, or lower --batch")
    for compiled in ((False, True) if options.compile else (False,)):
        for name, moe in (("dense FFN", False), ("MoE by the paper's listing", True)):
            training = language_model.Training(shape, moe, tokens, options.batch, compiled,
                                               options.seed)
            steps = iter(range(10**9))
            median = timer.measure("training step", name + (", torch.compile" if compiled else ""),
                                   lambda i: training.step(next(steps)))
            if median is None:
                continue
            losses = torch.stack(training.losses).tolist()
            timer.results[-1].update(tokens_per_second=per_step / median * 1e3, losses=losses)
            print(f"{'':20s} {per_step / median * 1e3:,.0f} tokens/s; loss {losses[0]:.3f} first, "
                  f"{losses[-1]:.3f} after {len(losses)} steps", flush=True)
            del training


def main():
    options = parse_options()
    if not torch.cuda.is_available():
        sys.exit("torch_baselines: no CUDA device is visible to PyTorch")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]
    if options.data:
        given = data.load(options.data, options, dtype, "cuda", options.seed)
    else:
        given = data.make(options, dtype, "cuda", options.seed)
    name = torch.cuda.get_device_name()
    print(f"{name}, PyTorch {torch.__version__}, {options.dtype}; {given.says}")
    print(f"{options.tokens} tokens, d {options.dim}, E {options.experts}, K {options.active}, "
          f"M {options.shortlist}, G {options.codewords}, m {options.expert_dim}")
    used = torch.stack([(h @ given.codebook.T).argmax(1).bincount(minlength=options.codewords)
                        for h in given.hidden])
    print(f"tokens of a codeword: {used.min().item()} to {used.max().item()}")
    timer = timing.Timer(options.repetitions, options.seconds, options.sets)
    runs = {
        "ceilings": lambda: ceilings.measure(timer, options.experts, options.dim),
        "routing": lambda: run_routing(options, timer, given),
        "rebuild": lambda: run_rebuild(options, timer, given),
        "experts": lambda: run_experts(options, timer, given),
        "layer": lambda: run_layer(options, timer, given),
        "model": lambda: run_model(options, timer),
    }
    for part in PARTS:
        if part not in options.parts:
            continue
        runs[part]()
        if options.json:  # after every part, so that a long run that is stopped leaves something
            kept = {"benchmark": "torch_baselines", "device": name, "torch": torch.__version__,
                    "data": given.says, "options": vars(options), "results": timer.results}
            pathlib.Path(options.json).write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
