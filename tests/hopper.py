"""Compile Triton kernels for an H100 or H200 on a machine without one: types, layouts and shared memory are checked, speed is not.

Run as a script in a process of its own, because the tests' own process has Triton in its interpreter:
    python tests/hopper.py JSON    a list of [module.kernel, {argument: type}, {constant: value}, {option: value}]
It prints a list of the bytes of shared memory of each.
"""

import importlib
import json
import os
import subprocess
import sys

SHARED_BYTES = 227 * 1024
"""What a block may take on compute capability 9.0."""


def compile_here(jobs):
    """Bytes of shared memory of each."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    used = []
    for place, types, constants, options in jobs:
        module, name = place.rsplit(".", 1)
        kernel = getattr(importlib.import_module(module), name)
        signature = types | dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature={n: signature[n] for n in kernel.arg_names}, constexprs=constants)
        used.append(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared)
    return used


def shared_bytes(jobs):
    """The same from another process."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, json.dumps(jobs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(compile_here(json.loads(sys.argv[1]))))
