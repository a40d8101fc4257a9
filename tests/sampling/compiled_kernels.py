"""Compiles the sampler's kernels for a Hopper GPU, which need not be there, and prints assembly.

The tests run it as a script, since triton does not read modules that are type-checked as they are
imported. It answers with a line of JSON: the text by case.
"""

import json

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cartok.sampling import draw_kernel, kernels

NUMBERS = {
    "eps": "fp32",
    "scale": "fp32",
    "scales": "*fp64",
    "temperature": "*fp64",
    "noise": "*fp64",
    "rotary": "*fp32",
    "position": "*i64",
    "kept": "*i64",
    "tokens": "*i64",
    "all_finite": "*i1",
}
COUNTS = (
    "heads", "length", "half", "rows", "inputs", "outputs", "codes", "pictures", "places", "width",
)  # fmt: skip
"""Powers of two or multiples of 16 in every recipe, which is what makes loads wide."""


def compiled(kernel, *, num_warps=4, **constants):
    """The assembly of a kernel for Hopper; tensors are bfloat16 where nothing else is said."""
    kinds, attrs = {}, {}
    for index, name in enumerate(kernel.arg_names):
        is_count = name in COUNTS
        kind = "i32" if is_count else NUMBERS.get(name, "*bf16")
        kinds[name] = "constexpr" if name in constants else kind
        if kinds[name].startswith("*") or (is_count and name not in ("heads", "rows", "pictures")):
            attrs[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants, attrs=attrs)
    options = {
        "num_warps": num_warps,
        "launch_pdl": constants.get("early", False),
        "enable_fp_fusion": True,  # some tritons warn where it is not said
    }
    return compile_kernel(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


EARLY = {"early": True, "normed": True}
FEW = EARLY | {"tall": 2, "deep": 256}
CASES = {
    "attention": (kernels.attend_kernel, 1, EARLY | {"wide": 64, "tile": 8}),
    "gated": (
        kernels.streamed_kernel, 4, FEW | {"gated": True, "adds": False, "tile": 4, "parts": 5},
    ),
    "added": (
        kernels.streamed_kernel, 1,
        FEW | {"normed": False, "gated": False, "adds": True, "tile": 1, "parts": 14},
    ),
    "normed": (
        kernels.streamed_kernel, 4, FEW | {"gated": False, "adds": False, "tile": 4, "parts": 5},
    ),
    "draw": (draw_kernel.draw_kernel, 16, {"guided": True, "tile": 4096, "wide": 2048}),
}  # fmt: skip

if __name__ == "__main__":
    print(json.dumps({
        name: compiled(kernel, num_warps=warps, **constants)
        for name, (kernel, warps, constants) in CASES.items()
    }))  # fmt: skip
