"""What the device can do at most: the figures that floors are computed with."""

import torch
import triton
import triton.language as tl

ROWS_OF_A_PROGRAM = 512


@triton.jit
def gather_kernel(table, index, out, COUNT: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """out row p = sum of the COUNT rows of `table` that index[p, :] names."""
    program = tl.program_id(0)
    column = tl.arange(0, DIM)
    total = tl.zeros([BLOCK, DIM], dtype=tl.float32)
    for first in range(0, COUNT, BLOCK):
        row = tl.load(index + program * COUNT + first + tl.arange(0, BLOCK)).to(tl.int64)
        total += tl.load(table + row[:, None] * DIM + column[None, :]).to(tl.float32)
    tl.store(out + program * DIM + column, tl.sum(total, axis=0))


def gather(table, index, out):
    gather_kernel[(len(index),)](table, index, out, index.shape[1], table.shape[1], 32, num_warps=8)


def measure(timer, experts, dim):
    """Copy, matrix products, and rows gathered from a table of the size of the experts'."""
    first = torch.randn(2**28, device="cuda")
    second = torch.empty_like(first)
    rate(timer, "device memory, copy", lambda i: second.copy_(first), 2 * 4 * len(first), "GB/s")
    del first, second
    size = 8192
    for dtype in (torch.bfloat16, torch.float32):
        left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
        rate(timer, f"matrix product, {str(dtype)[6:]}", lambda i: left @ right, 2 * size**3,
             "GFLOP/s")
    side = 1 << (dim - 1).bit_length()
    index = torch.randint(experts, (timer.sets, 8192, ROWS_OF_A_PROGRAM), device="cuda",
                          dtype=torch.int32)
    out = torch.empty(8192, side, device="cuda")
    for rows in (2048, experts):
        table = torch.randn(rows, side, device="cuda", dtype=torch.bfloat16)
        named = index % rows
        rate(timer, f"gather of rows, {side} bf16 from {table.numel() * 2 / 2**20:.0f} MiB",
             lambda i: gather(table, named[i], out), named[0].numel() * side * 2, "GB/s")


def rate(timer, name, body, amount, unit):
    """`amount` bytes or operations per call, in 1e9 per second."""
    median = timer.measure("ceilings", name, body)
    if median is not None:
        timer.results[-1].update(rate=amount / median / 1e6, unit=unit)
        print(f"{'':20s} {amount / median / 1e6:,.0f} {unit}", flush=True)
