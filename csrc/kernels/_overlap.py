"""Kernels that may begin while those before them in the stream still run.

The driver launches such a kernel as soon as every program of the one before it has ended, or has begun and
said that it may (programmatic dependent launch, CUDA programming guide). Programs that are let begin early go
where there is room, so only a kernel that knows what comes after it may let it. Until
`wait_for_earlier_kernels` a kernel may only ask for memory, not look at it: whatever it reads could still be
written, unless the one before it said so after its own wait. Each of its programs has to wait, for the kernel
after it takes this one's end as the end of all before it.

Architectures before sm_90 have none of this. A kernel's PTX serves all, so these lines are comments in it,
which tools/aot/compile.py takes the marks off from sm_90 on.
"""

import triton
import triton.language as tl


@triton.jit
def let_next_kernel_begin():
    tl.inline_asm_elementwise(
        "// from sm_90: griddepcontrol.launch_dependents;\nmov.b32 $0, 0;",
        "=r",
        [],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def wait_for_earlier_kernels():
    tl.inline_asm_elementwise(
        "// from sm_90: griddepcontrol.wait;\nmov.b32 $0, 0;",
        "=r,~{memory}",
        [],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_into_l2(pointer, size):
    """Asks for `size` bytes at `pointer`, both multiples of 16: one thread a program does."""
    tl.inline_asm_elementwise(
        "// from sm_90: { .reg .pred %first; .reg .b32 %thread; mov.u32 %thread, %tid.x; "
        "setp.eq.u32 %first, %thread, 0; @%first cp.async.bulk.prefetch.L2.global [$1], $2; }\n"
        "mov.b32 $0, 0;",
        "=r,l,r",
        [pointer.to(tl.int64, bitcast=True), size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
