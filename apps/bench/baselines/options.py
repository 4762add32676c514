"""Options of torch_baselines.py."""

import argparse

from .language_model import LAUNCHES, NAMES

MODELS = tuple(NAMES)
PARTS = ("ceilings", "routing", "rebuild", "experts", "layer", "model")


def parse(description):
    parser = argparse.ArgumentParser(description=description,
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
    parser.add_argument("--only", default="", metavar="LIST",
                        help="of routing, experts and layer, the ways with one of these texts in "
                        "their names")
    parser.add_argument("--compile", action="store_true",
                        help="measure under torch.compile, too, what gains by it")
    parser.add_argument("--batch", default="8", metavar="LIST",
                        help="sequences of a training step, one measurement each (=8)")
    parser.add_argument("--models", default=",".join(MODELS), metavar="LIST",
                        help=f"language models, of {','.join(MODELS)} (all)")
    parser.add_argument("--launches", metavar="LIST",
                        help="how a training step gets to the device, of "
                        f"{','.join(LAUNCHES)} (eager,graph, and with --compile "
                        "compile,compile-graph)")
    parser.add_argument("--data", metavar="PREFIX", help="states and experts")
    parser.add_argument("--text", metavar="FILE", help="text to train on (this repository's)")
    parser.add_argument("--json", metavar="FILE", help="keep the results")
    options = parser.parse_args()
    if options.launches is None:
        options.launches = "eager,graph" + ",compile,compile-graph" * options.compile
    for name, known in (("parts", PARTS), ("models", MODELS),
                        ("launches", LAUNCHES)):
        chosen = getattr(options, name).split(",")
        for value in chosen:
            if value not in known:
                parser.error(f"--{name}: {value} is not one of {', '.join(known)}")
        setattr(options, name, chosen)
    options.only = options.only.split(",")
    try:
        options.batch = [int(x) for x in options.batch.split(",")]
    except ValueError:
        parser.error(f"--batch {options.batch}: numbers and commas are needed, such as 8,32")
    if not 0 < options.active <= options.shortlist <= options.experts:
        parser.error(f"--active {options.active} --shortlist {options.shortlist} --experts "
                     f"{options.experts}: need 0 < active <= shortlist <= experts")
    return options
