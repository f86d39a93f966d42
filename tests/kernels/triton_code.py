"""Machine code of the Triton kernels, made without a GPU: see test_triton_aot.py."""

from __future__ import annotations

import collections
import pathlib
import re
import subprocess

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature
from triton_cases import MODULES

CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
F, B, H = torch.float32, torch.bfloat16, torch.float16


def x(dtype=torch.float32):
    return [torch.zeros(64, dtype=dtype)]


def words():
    return [torch.zeros(2, dtype=torch.int32)]


def tiles():
    return [torch.zeros(1, dtype=torch.int64)]


def captured(run):
    """(kernel, arguments, options) of each launch of ``run()``; nothing is launched."""
    calls, originals = [], [(m, m.launch) for m in MODULES]
    for module, _ in originals:
        module.launch = lambda kernel, grid, device, *args, **meta: calls.append(
            (kernel, args, meta)
        )
    try:
        run()
    finally:
        for module, launch in originals:
            module.launch = launch
    return calls


def specialised(call, capability, **options):
    """What the JIT derives from a call: (source, options, key of the compilation)."""
    kernel, args, meta = call
    backend = make_backend(GPUTarget("cuda", capability, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    meta = {**meta, "enable_fp_fusion": False, **options}
    bound, special, extra = bind(*args, **meta)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, meta, bound, special, extra
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return source, parsed.__dict__, (kernel.fn.__name__, str(special), str(extra))


def compile_call(call, capability, **options):
    source, parsed, _ = specialised(call, capability, **options)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=parsed)


class Code:
    """A compiled kernel: its code at three stages, instruction counts, registers, stack bytes."""

    def __init__(self, compiled, path):
        self.ptx, self.ttgir = compiled.asm["ptx"], compiled.asm["ttgir"]
        path.write_bytes(compiled.asm["cubin"])
        usage, self.sass = (
            subprocess.run(
                [CUOBJDUMP, flag, path], capture_output=True, text=True, check=True
            ).stdout
            for flag in ("-res-usage", "-sass")
        )
        self.registers = int(re.search(r"REG:(\d+)", usage)[1])
        self.stack = int(re.search(r"STACK:(\d+)", usage)[1])
        instruction = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)"
        self.counts = collections.Counter(re.findall(instruction, self.sass, re.MULTILINE))

    def count(self, prefix):
        return sum(n for name, n in self.counts.items() if name.startswith(prefix))


def keys(run):
    return {specialised(call, 90)[2] for call in captured(run)}


@triton.jit
def divide_and_root_kernel(x_ptr, a, b, N: tl.constexpr):
    lanes = tl.arange(0, N)
    u, v = tl.load(x_ptr + lanes), tl.load(x_ptr + N + lanes)
    root = tl.math.div_rn(tl.math.sqrt_rn(u), b) + a
    tl.store(x_ptr + lanes, tl.math.div_rn(v, root))


def probe(kernel, capability, path, *args, **meta):
    return Code(compile_call((kernel, args, meta), capability), path)
