"""RMSNorm and LayerNorm of rows, with a residual added before and a gate before or after; memory-bound.

u = x + residual, times silu(z) if the gate is first; h = (u - mean) rstd; y = weight h + bias, times silu(z)
if the gate is last. Zhang & Sennrich, arXiv 1910.07467; Ba, Kiros & Hinton, arXiv 1607.06450.
"""

import triton
import triton.language as tl
from _half_blocks import load_wide, store_narrow
from _norm_rows import (
    CENTERED,
    FEW,
    GATE_LAST,
    HAS_BIAS,
    HAS_DRESIDUAL,
    HAS_RESIDUAL,
    HAS_SUM,
    HAS_X,
    HAS_Z,
    affine,
    ask_for_row,
    gated_first,
    gated_last,
    load_as,
    load_normed,
    load_total,
    sigmoid,
    store_as,
    store_normed,
    width_as,
)

from tools.aot.spec import Config, Kernel

# The backward keeps rows in blocks of at least so many channels in registers between its two passes.
KEPT = tl.constexpr(2048)


@triton.jit
def rms_norm_fwd_kernel(
    x,
    residual,
    z,
    weight,
    bias,
    out,
    sum_out,
    mean_out,
    rstd_out,
    eps,
    all_rows,
    inner_rows,
    channels,
    G,
    x_batch,
    x_row,
    x_channel,
    residual_batch,
    residual_row,
    residual_channel,
    z_batch,
    z_row,
    z_channel,
    flags,
    LAYOUT: tl.constexpr,
    LOOP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program norms one group of G channels of ROWS rows; with LOOP in blocks of channels, read again."""
    if LAYOUT == "rows":
        x_channel = 1
        residual_channel = 1
        z_channel = 1
    groups = channels // G
    group = tl.program_id(0) % groups
    row = (tl.program_id(0) // groups) * ROWS + tl.arange(0, ROWS)
    live = row < all_rows
    batch = (row // inner_rows).to(tl.int64)
    inner = (row % inner_rows).to(tl.int64)
    x_first = (batch * x_batch + inner * x_row)[:, None]
    residual_first = (batch * residual_batch + inner * residual_row)[:, None]
    z_first = (batch * z_batch + inner * z_row)[:, None]
    out_first = (row.to(tl.int64) * channels)[:, None]
    at_statistic = row.to(tl.int64) * groups + group
    mean = tl.zeros([ROWS], tl.float32)

    if LOOP:
        partial = tl.zeros([ROWS, BLOCK], tl.float32)
        for first in range(0, G, BLOCK):
            column = first + tl.arange(0, BLOCK)
            channel = (group * G + column).to(tl.int64)[None, :]
            mask = live[:, None] & (column < G)[None, :]
            total = load_total(
                x,
                residual,
                x_first + channel * x_channel,
                residual_first + channel * residual_channel,
                mask,
                flags,
            )
            if (flags & HAS_SUM) != 0:
                store_as(sum_out, out_first + channel, total, mask, flags, 3)
            u = gated_first(total, z, z_first + channel * z_channel, mask, flags)
            if (flags & CENTERED) != 0:
                partial += u
            else:
                partial += u * u
        if (flags & CENTERED) != 0:
            mean = tl.sum(partial, 1) / G
            partial = tl.zeros([ROWS, BLOCK], tl.float32)
            for first in range(0, G, BLOCK):
                column = first + tl.arange(0, BLOCK)
                channel = (group * G + column).to(tl.int64)[None, :]
                mask = live[:, None] & (column < G)[None, :]
                total = load_total(
                    x,
                    residual,
                    x_first + channel * x_channel,
                    residual_first + channel * residual_channel,
                    mask,
                    flags,
                )
                u = gated_first(total, z, z_first + channel * z_channel, mask, flags)
                centered = tl.where(mask, u - mean[:, None], 0.0)
                partial += centered * centered
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(partial, 1) / G + eps))
        for first in range(0, G, BLOCK):
            column = first + tl.arange(0, BLOCK)
            channel = (group * G + column).to(tl.int64)[None, :]
            inside = (column < G)[None, :]
            mask = live[:, None] & inside
            z_at = z_first + channel * z_channel
            total = load_total(
                x,
                residual,
                x_first + channel * x_channel,
                residual_first + channel * residual_channel,
                mask,
                flags,
            )
            u = gated_first(total, z, z_at, mask, flags)
            at = out_first + channel
            store_normed(out, u, mean, rstd, weight, bias, z, at, z_at, channel, mask, inside, flags)
    else:
        column = tl.arange(0, BLOCK)
        channel = (group * G + column).to(tl.int64)[None, :]
        inside = (column < G)[None, :]
        mask = live[:, None] & inside
        z_at = z_first + channel * z_channel
        u = load_total(
            x,
            residual,
            x_first + channel * x_channel,
            residual_first + channel * residual_channel,
            mask,
            flags,
        )
        if (flags & HAS_SUM) != 0:
            store_as(sum_out, out_first + channel, u, mask, flags, 3)
        u = gated_first(u, z, z_at, mask, flags)
        if (flags & CENTERED) != 0:
            mean = tl.sum(u, 1) / G
        centered = tl.where(mask, u - mean[:, None], 0.0)
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(centered * centered, 1) / G + eps))
        at = out_first + channel
        store_normed(out, u, mean, rstd, weight, bias, z, at, z_at, channel, mask, inside, flags)

    if (flags & CENTERED) != 0:
        tl.store(mean_out + at_statistic, mean, live)
    tl.store(rstd_out + at_statistic, rstd, live)


@triton.jit
def rms_norm_bwd_kernel(
    dout,
    dsum,
    x,
    residual,
    z,
    weight,
    bias,
    mean_in,
    rstd_in,
    dx,
    dresidual,
    dz,
    planes,
    eps,
    all_rows,
    inner_rows,
    rows_a_program,
    channels,
    G,
    dout_batch,
    dout_row,
    dout_channel,
    dsum_batch,
    dsum_row,
    dsum_channel,
    x_batch,
    x_row,
    x_channel,
    residual_batch,
    residual_row,
    residual_channel,
    z_batch,
    z_row,
    z_channel,
    flags,
    LAYOUT: tl.constexpr,
    LOOP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx = (g - h mean(g h) - mean(g)) rstd with g = weight dy; the last mean only if centered.

    Where G is 1, g - h mean(g h) is g (1 - h^2) = g eps rstd^2, whose digits the difference would lose.

    One program takes one group of G channels of `rows_a_program` rows, ROWS at a time, and writes what they
    have of dweight (and dbias) to its plane [1 or 2, channels]. With LOOP those are too many for
    registers and are added to the plane itself.
    """
    if LAYOUT == "rows":
        dout_channel = 1
        dsum_channel = 1
        x_channel = 1
        residual_channel = 1
        z_channel = 1
    groups = channels // G
    group = tl.program_id(0) % groups
    block = tl.program_id(0) // groups
    plane = planes + block.to(tl.int64) * (1 + (flags & HAS_BIAS)) * channels
    dweight = tl.zeros([ROWS, BLOCK], tl.float32)
    dbias = tl.zeros([ROWS, BLOCK], tl.float32)
    end = G if LOOP else BLOCK

    for start in range(0, rows_a_program, ROWS):
        row = block * rows_a_program + start + tl.arange(0, ROWS)
        live = row < all_rows
        batch = (row // inner_rows).to(tl.int64)
        inner = (row % inner_rows).to(tl.int64)
        dout_first = (batch * dout_batch + inner * dout_row)[:, None]
        dsum_first = (batch * dsum_batch + inner * dsum_row)[:, None]
        x_first = (batch * x_batch + inner * x_row)[:, None]
        residual_first = (batch * residual_batch + inner * residual_row)[:, None]
        z_first = (batch * z_batch + inner * z_row)[:, None]
        out_first = (row.to(tl.int64) * channels)[:, None]
        at_statistic = row.to(tl.int64) * groups + group
        if LAYOUT == "rows" and ROWS == 1:
            # The next row comes from memory while this one is at work.
            next_row = block * rows_a_program + start + 1
            more = (start + 1 < rows_a_program) & (next_row < all_rows)
            next_batch = (next_row // inner_rows).to(tl.int64)
            next_inner = (next_row % inner_rows).to(tl.int64)
            first = group * G
            of_dout = next_batch * dout_batch + next_inner * dout_row + first
            of_dsum = next_batch * dsum_batch + next_inner * dsum_row + first
            of_x = next_batch * x_batch + next_inner * x_row + first
            of_residual = next_batch * residual_batch + next_inner * residual_row + first
            of_z = next_batch * z_batch + next_inner * z_row + first
            WIDTH: tl.constexpr = dout.dtype.element_ty.primitive_bitwidth // 8
            ask_for_row(dout, of_dout, WIDTH, G, more, BLOCK)
            ask_for_row(dsum, of_dsum, width_as(flags, 3), G, more & ((flags & HAS_SUM) != 0), BLOCK)
            ask_for_row(x, of_x, WIDTH, G, more & ((flags & HAS_X) != 0), BLOCK)
            ask_for_row(
                residual, of_residual, width_as(flags, 2), G, more & ((flags & HAS_RESIDUAL) != 0), BLOCK
            )
            ask_for_row(z, of_z, WIDTH, G, more & ((flags & HAS_Z) != 0), BLOCK)
        rstd = tl.load(rstd_in + at_statistic, live, 0.0)
        mean = tl.zeros([ROWS], tl.float32)
        if (flags & CENTERED) != 0:
            mean = tl.load(mean_in + at_statistic, live, 0.0)
        along_parts = tl.zeros([ROWS, BLOCK], tl.float32)
        whole_parts = tl.zeros([ROWS, BLOCK], tl.float32)
        h = tl.zeros([ROWS, BLOCK], tl.float32)
        g = tl.zeros([ROWS, BLOCK], tl.float32)
        for first in range(0, end, BLOCK):
            column = first + tl.arange(0, BLOCK)
            channel = (group * G + column).to(tl.int64)[None, :]
            inside = (column < G)[None, :]
            mask = live[:, None] & inside
            z_at = z_first + channel * z_channel
            x_at = x_first + channel * x_channel
            residual_at = residual_first + channel * residual_channel
            dout_at = dout_first + channel * dout_channel
            h = load_normed(x, residual, z, mean, rstd, x_at, residual_at, z_at, mask, flags)
            dy = load_wide(dout + dout_at, mask, flags)
            if (flags & (HAS_Z | GATE_LAST)) == (HAS_Z | GATE_LAST):
                zv = load_wide(z + z_at, mask, flags)
                s = sigmoid(zv)
                slope = dy * s * (1.0 + zv * (1.0 - s))
                dy *= zv * s
                slope *= affine(h, weight, bias, channel, inside, flags)
                store_narrow(dz + out_first + channel, slope, mask, flags)
            if LOOP:
                at = plane + group * G + column
                before = (column < G) & (start > 0)
                tl.store(at, tl.load(at, before, 0.0) + tl.sum(dy * h, 0), column < G)
                if (flags & HAS_BIAS) != 0:
                    tl.store(at + channels, tl.load(at + channels, before, 0.0) + tl.sum(dy, 0), column < G)
            else:
                dweight += dy * h
                dbias += dy
            g = dy * load_as(weight, channel, inside, flags, 0)
            along_parts += g * h
            whole_parts += g
        along = tl.sum(along_parts, 1) / G
        whole = tl.zeros([ROWS], tl.float32)
        if (flags & CENTERED) != 0:
            whole = tl.sum(whole_parts, 1) / G
        if BLOCK <= FEW:
            kept = tl.full([ROWS], 1.0, tl.float32)
            if G == 1:
                kept = eps * rstd * rstd
                along = tl.zeros([ROWS], tl.float32)
                if (flags & CENTERED) != 0:
                    kept = tl.zeros([ROWS], tl.float32)
                    whole = tl.zeros([ROWS], tl.float32)
        # Reading a row again, now from the cache, leaves its registers to other programs; where a thread
        # holds more of it, pointers and masks would take as many.
        for first in range(0, end, BLOCK):
            column = first + tl.arange(0, BLOCK)
            channel = (group * G + column).to(tl.int64)[None, :]
            inside = (column < G)[None, :]
            mask = live[:, None] & inside
            z_at = z_first + channel * z_channel
            x_at = x_first + channel * x_channel
            residual_at = residual_first + channel * residual_channel
            dout_at = dout_first + channel * dout_channel
            if LOOP or BLOCK < KEPT:
                h = load_normed(x, residual, z, mean, rstd, x_at, residual_at, z_at, mask, flags)
                dy = gated_last(load_wide(dout + dout_at, mask, flags), z, z_at, mask, flags)
                g = dy * load_as(weight, channel, inside, flags, 0)
            if BLOCK <= FEW:
                g *= kept[:, None]
            du = (g - h * along[:, None] - whole[:, None]) * rstd[:, None]
            at_out = out_first + channel
            if (flags & (HAS_Z | GATE_LAST)) == HAS_Z:
                zv = load_wide(z + z_at, mask, flags)
                s = sigmoid(zv)
                slope = du * s * (1.0 + zv * (1.0 - s))
                du *= zv * s
                slope *= load_total(x, residual, x_at, residual_at, mask, flags)
                store_narrow(dz + at_out, slope, mask, flags)
            if (flags & HAS_SUM) != 0:
                du += load_as(dsum, dsum_first + channel * dsum_channel, mask, flags, 3)
            store_narrow(dx + at_out, du, mask, flags)
            if (flags & HAS_DRESIDUAL) != 0:
                store_as(dresidual, at_out, du, mask, flags, 2)
        if LOOP:
            # What one thread has added, another may read for the next rows.
            tl.debug_barrier()

    if not LOOP:
        column = tl.arange(0, BLOCK)
        at = plane + group * G + column
        tl.store(at, tl.sum(dweight, 0), column < G)
        if (flags & HAS_BIAS) != 0:
            tl.store(at + channels, tl.sum(dbias, 0), column < G)


def _strides(*tensors: str) -> dict[str, str]:
    return {f"{tensor}_{axis}": "i64" for tensor in tensors for axis in ("batch", "row", "channel")}


def _aligned(tensors: tuple[str, ...], *others: str):
    def names(values: dict) -> list[str]:
        if values["LAYOUT"] == "strided":
            return []
        rows = [f"{tensor}_{axis}" for tensor in tensors for axis in ("batch", "row")]
        return [*tensors, *others, "weight", "bias", "channels", "G", *rows]

    return names


_AXES = dict(T=["f32", "half"], LAYOUT=["rows", "strided"])


def _whole(name: str, block: int, warps: int, longest: bool = False, **more: int) -> Config:
    """A row in one block; csrc/ops/rms_norm.cpp knows how long the longest are."""
    when = "LAYOUT == 'rows'" + ("" if longest else f" and G <= {block}")
    return Config(name, when=when, LOOP=False, ROWS=1, BLOCK=block, num_warps=warps, **more)


KERNELS = [
    Kernel(
        rms_norm_fwd_kernel,
        args={
            **dict(x="*T", z="*T", out="*T", residual="*u8", sum_out="*u8", weight="*u8", bias="*u8"),
            **dict(mean_out="*f32", rstd_out="*f32", eps="f32"),
            **dict(all_rows="i32", inner_rows="i32", channels="i32", G="i32", flags="i32"),
            **_strides("x", "residual", "z"),
        },
        axes=_AXES,
        aligned=_aligned(("x", "residual", "z"), "out", "sum_out"),
        shape=["G"],
        configs=[
            Config("few", when="G <= 128", LOOP=False, ROWS=8, BLOCK=128, num_warps=4),
            _whole("small", 1024, 4),
            _whole("medium", 4096, 8),
            _whole("wide", 8192, 16, longest=True),
            Config("loop", LOOP=True, ROWS=2, BLOCK=512, num_warps=8),
        ],
    ),
    Kernel(
        rms_norm_bwd_kernel,
        args={
            **dict(dout="*T", x="*T", z="*T", dx="*T", dz="*T"),
            **dict(dsum="*u8", residual="*u8", weight="*u8", bias="*u8", dresidual="*u8"),
            **dict(mean_in="*f32", rstd_in="*f32", planes="*f32", eps="f32"),
            **dict(all_rows="i32", inner_rows="i32", rows_a_program="i32", channels="i32", G="i32"),
            **dict(flags="i32"),
            **_strides("dout", "dsum", "x", "residual", "z"),
        },
        axes=_AXES,
        aligned=_aligned(("dout", "dsum", "x", "residual", "z"), "dx", "dresidual", "dz", "planes"),
        shape=["G"],
        tuned=["PROGRAMS"],
        configs=[
            Config("few", when="G <= 128", LOOP=False, ROWS=4, BLOCK=128, num_warps=4),
            _whole("small", 1024, 4, maxnreg=128),
            _whole("middle", 2048, 4),
            _whole("medium", 4096, 8, longest=True),
            Config("loop", LOOP=True, ROWS=1, BLOCK=512, num_warps=4),
        ],
    ),
]
