#!/usr/bin/env python3
"""PyTorch's causal attention at the shapes of `airmoe-bench attention`, as CUDA graphs: flash
attention and cuDNN's, forward and backward."""

import argparse
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def graph_of(body):
    """A graph of one call; a side stream calls it before, as torch.autograd wants."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            body()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph


def median_ms(graph, flush, repetitions):
    times = []
    for i in range(repetitions + 5):
        flush.zero_()  # the cache holds other data, as in a model
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 5:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("sequences", 8), ("context", 1024), ("heads", 4), ("kv-heads", 1),
                        ("head-dim", 64), ("repetitions", 30)):
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()

    def matrix(heads):
        shape = (o.sequences, o.context, heads, o.head_dim)
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    inputs = [matrix(h).requires_grad_() for h in (o.heads, o.kv_heads, o.kv_heads)]
    d_out = matrix(o.heads)
    flush = torch.empty(1 << 27, dtype=torch.int8, device="cuda")
    flops = 2.0 * o.sequences * o.heads * o.context ** 2 * o.head_dim

    def forward():
        return F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)

    def both():
        torch.autograd.grad(forward(), inputs, d_out)

    for name, backend in BACKENDS.items():
        with sdpa_kernel(backend):
            with torch.no_grad():
                there = median_ms(graph_of(forward), flush, o.repetitions)
            back = median_ms(graph_of(both), flush, o.repetitions) - there
        print(f"{name}: forward {there:.4f} ms, {flops / there * 1e-9:.0f} TFLOP/s; "
              f"backward {back:.4f} ms, {2.5 * flops / back * 1e-9:.0f} TFLOP/s")


if __name__ == "__main__":
    main()
