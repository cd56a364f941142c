"""Estimate the time of the stage 1 training step on one H200, part by part, without a GPU.

    python benchmarks/time_budget.py
    python benchmarks/time_budget.py --batch 64 --decoder-share 0.5
    python benchmarks/time_budget.py --compile        # count the step's work again after a change of the model

The work is counted from the code: matrix products and bytes from the step compiled by `ppma.compile_check.check` (kept
in results/stage1_step.json), attention from the instructions of its kernels, compiled now. The rates are a model.
`floor` is the time at the measured or published peak of the busiest unit; `estimate` divides it by the efficiency that
comparable code reaches. Replace it by measurement: `gpu_day.py` prints the profile to compare with this table.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.loop_cycles import attention_kernels, warp_cycles
from ppma.compile_check.check import Settings, StepReport, check
from ppma.config.command import DONE, parse, run
from ppma.config.errors import InputError
from ppma.kernels import ahead_of_time

WORK = Path(__file__).parent / "results" / "stage1_step.json"

# Rates of an H200.
SMS = 132
PRODUCT_FLOPS = 790e12
"""bf16, measured on an 8192-cubed product of random values on an H200: 769 to 798 TFLOP/s."""
REFERENCE_K = 8192
COPY_BYTES = 4.3e12
"""Per second, measured on an H200 by a device-to-device copy, reads plus writes."""
CLOCK = 989.4e12 / (SMS * 4096)
"""Hz, 1.83 GHz: the datasheet's dense bf16 rate over multiprocessors and FLOP per cycle of one."""

# The share of these rates that comparable code reaches, until measured.
BYTES_EFFICIENCY = 0.85
"""Of copy bandwidth, by elementwise and normalization kernels."""
ATTENTION_EFFICIENCY = 0.75
"""Of the busiest pipe, by attention: FlashAttention-3 (Shah et al., 2024) reports 75 % of the H100's peak."""
LAUNCH_SECONDS = 1e-6
"""Between two kernels of one stream, when the host runs ahead."""
ADAMW_BYTES = 28
"""Per parameter: read weight, gradient and both moments, write all but the gradient. The norm is read in logged steps
only."""

VISIBLE, MASKED, TOKENS = 157, 1411, 1568
"""Tokens of a clip of 16 x 224 x 224 at a mask ratio of 0.9."""
DEPTH, DECODER_DEPTH = 12, 4
PARAMETERS = 94.2e6
VALUES = 1536
"""Of a patch."""


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Estimate the stage 1 step on one H200."""

    batch: int = 128
    """Clips on the GPU."""
    decoder_share: float = 1.0
    """Share of the masked tokens that the decoder sees (mae.decoder_share)."""
    compile: bool = False
    """Compile the step again, which takes minutes, and rewrite the file of its work."""

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 < self.decoder_share <= 1:
            raise InputError(f"--batch {self.batch} must be at least 1, --decoder-share {self.decoder_share} in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the step."""

    name: str
    floor_ms: float
    estimate_ms: float
    amount: str
    """What bounds it, with its unit."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a compiled stage 1 step does at a batch of 128, without attention, patches and optimizer."""

    torch: str
    triton: str
    products: tuple[tuple[int, int, int, int], ...]
    """(M, N, K, calls)."""
    encoder_block_bytes: float
    decoder_block_bytes: float
    rest_bytes: float
    launches: int

    @property
    def shallow_bytes(self) -> float:
        """Bytes of a step of one encoder and one decoder block."""
        return self.encoder_block_bytes + self.decoder_block_bytes + self.rest_bytes


def products_of(report: StepReport) -> Counter[tuple[int, int, int]]:
    """Return {(M, N, K): calls} of the matrix products of a step."""
    found: Counter[tuple[int, int, int]] = Counter()
    for call in report.calls:
        if call.operator in ("aten::mm", "aten::addmm"):
            (m, k), (_, n) = call.shapes[-2:]
            found[m, n, k] += call.calls
    return found


def count_work(shallow: StepReport, full: StepReport) -> Work:
    """Return the work of a step from its reports at depth 1 and at full depth.

    The bytes of a block are proportional to its tokens times its width, so two reports determine encoder and decoder.
    """
    ratio = TOKENS * 384 / (VISIBLE * 768)
    encoder = (full.bytes_moved - shallow.bytes_moved) / (DEPTH - 1 + (DECODER_DEPTH - 1) * ratio)
    return Work(
        torch=full.torch,
        triton=full.triton,
        products=tuple(sorted((*shape, calls) for shape, calls in products_of(full).items())),
        encoder_block_bytes=encoder,
        decoder_block_bytes=encoder * ratio,
        rest_bytes=shallow.bytes_moved - encoder * (1 + ratio),
        launches=full.launches,
    )


def compiled_work() -> Work:
    """Compile the step at depth 1 and at full depth, and return its work; takes minutes."""
    shallow, full = (check("mae", Settings(batch=128, depth=depth)) for depth in (1, None))
    return count_work(shallow, full)


def kept_work() -> Work:
    """Return the work in results/."""
    values = json.loads(WORK.read_text())
    return Work(**values | {"products": tuple(map(tuple, values["products"]))})


def product_efficiency(M: int, N: int, K: int) -> float:
    """Return the rate of a matrix product over that of the 8192-cubed one, for which PRODUCT_FLOPS was measured.

    A model of cuBLAS on Hopper, not measured: tiles of 128 x 256, prologue and epilogue worth 160 of K, waves of tiles
    that do not fill the GPU, and sums that are split where there are fewer tiles than multiprocessors.
    """
    tiles = -(-M // 128) * -(-N // 256)
    waves = tiles / SMS
    filled = 0.9 if waves < 1 else waves / -(-tiles // SMS)
    return filled * K / (K + 160) / (REFERENCE_K / (REFERENCE_K + 160))


def product_parts(work: Work, batch: int, decoder_tokens: int) -> Iterator[Part]:
    """Yield the products of the encoder, the decoder and its head."""
    rows = {128 * VISIBLE: batch * VISIBLE, 128 * TOKENS: batch * decoder_tokens}
    rows[128 * MASKED] = batch * (decoder_tokens - VISIBLE)
    totals: dict[str, list[float]] = {name: [0, 0, 0] for name in ("encoder", "decoder", "head")}
    for *shape, calls in work.products:
        name = "head" if 128 * MASKED in shape else "decoder" if 128 * TOKENS in shape else "encoder"
        M, N, K = (rows.get(side, side) for side in shape)
        flops, moved = 2 * M * N * K, 2 * (M * K + K * N + M * N)
        floor = max(flops / PRODUCT_FLOPS, moved / COPY_BYTES)
        estimate = max(flops / PRODUCT_FLOPS / product_efficiency(M, N, K), moved / COPY_BYTES / BYTES_EFFICIENCY)
        for place, value in enumerate((floor, estimate, flops)):
            totals[name][place] += calls * value
    for name, (floor, estimate, flops) in totals.items():
        yield part(f"products, {name}", floor, estimate, f"{flops / 1e12:.2f} TFLOP")


def part(name: str, floor: float, estimate: float, amount: str) -> Part:
    """Return a part from seconds."""
    return Part(name=name, floor_ms=floor * 1e3, estimate_ms=estimate * 1e3, amount=amount)


def bytes_part(name: str, moved: float) -> Part:
    """Return a part that is bound by memory."""
    floor = moved / COPY_BYTES
    return part(name, floor, floor / BYTES_EFFICIENCY, f"{moved / 1e9:.2f} GB")


# ------------------------------------------------------------------------------------------ attention by its instructions


def attention_seconds(kernel: ahead_of_time.CompiledKernel, batch: int, tokens: int, heads: int) -> float:
    """Return the floor of one launch. All warps share the multiprocessors evenly, but a head is never split."""
    constants = kernel.constants
    if kernel.kernel == "fused_gradient":  # a program for each head, one on a multiprocessor at a time
        programs = SMS * -(-batch * heads // SMS)
    else:
        own = constants["COLUMNS" if kernel.kernel == "key_value_gradient" else "ROWS"]
        programs = batch * heads * -(-tokens // own)
    return programs * kernel.warps * warp_cycles(kernel, tokens) / (4 * SMS * CLOCK)


def attention_parts(batch: int, decoder_tokens: int) -> Iterator[Part]:
    """Yield attention of encoder and decoder, forward and backward (fused if possible), with each kernel's first
    config."""
    found: dict[tuple[int, str], ahead_of_time.CompiledKernel] = {}
    for kernel in attention_kernels(90, case="paper"):
        found.setdefault((kernel.constants["D"], kernel.kernel), kernel)
    for name, D, tokens, heads, depth in (
        ("encoder", 64, VISIBLE, 12, DEPTH),
        ("decoder", 24, decoder_tokens, 16, DECODER_DEPTH),
    ):
        fused = (D, "fused_gradient") in found
        for kernels in (("forward",), ("fused_gradient",) if fused else ("query_gradient", "key_value_gradient")):
            floor = depth * sum(attention_seconds(found[D, kernel], batch, tokens, heads) for kernel in kernels)
            where = "forward" if kernels == ("forward",) else "backward"
            yield part(f"attention, {name} {where}", floor, floor / ATTENTION_EFFICIENCY, f"{tokens} tokens x {depth}")


def budget(batch: int = 128, *, decoder_share: float = 1.0) -> list[Part]:
    """Return the parts of a stage 1 step.

    Args:
        batch: Clips on the GPU.
        decoder_share: Share of the masked tokens that the decoder sees.
    """
    work = kept_work()
    targets = round(MASKED * decoder_share)
    clips, decoder = batch / 128, (VISIBLE + targets) / TOKENS
    encoder_bytes, decoder_bytes = DEPTH * work.encoder_block_bytes, DECODER_DEPTH * work.decoder_block_bytes
    return [
        *product_parts(work, batch, VISIBLE + targets),
        *attention_parts(batch, VISIBLE + targets),
        bytes_part("elementwise, encoder", clips * encoder_bytes),
        bytes_part("elementwise, decoder", clips * decoder * decoder_bytes),
        bytes_part("elementwise, rest", clips * work.rest_bytes),
        bytes_part("patchify", batch * VISIBLE * VALUES * 3),
        bytes_part("GELU gradient", 6 * batch * (DEPTH * VISIBLE * 3072 + DECODER_DEPTH * (VISIBLE + targets) * 1536)),
        bytes_part("pixel loss", batch * targets * VALUES * (3 + 5)),
        bytes_part("AdamW", PARAMETERS * ADAMW_BYTES),
        part("between launches", 0.0, work.launches * LAUNCH_SECONDS, f"{work.launches} launches"),
    ]


def table(parts: Sequence[Part], batch: int) -> str:
    """Return the parts, their sum and the rate as lines."""
    floor, estimate = sum(p.floor_ms for p in parts), sum(p.estimate_ms for p in parts)
    lines = [f"{'part':28}{'floor ms':>10}{'estimate ms':>13}{'share':>7}  amount"]
    lines += [
        f"{p.name:28}{p.floor_ms:10.2f}{p.estimate_ms:13.2f}{p.estimate_ms / estimate:7.0%}  {p.amount}" for p in parts
    ]
    lines.append(f"{'step':28}{floor:10.2f}{estimate:13.2f}")
    lines.append(f"{'views/s':28}{1e3 * batch / floor:10.0f}{1e3 * batch / estimate:13.0f}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Print the budget."""
    config = parse(BudgetConfig, argv, prog="time_budget")
    if config.compile:
        WORK.write_text(json.dumps(asdict(compiled_work()), indent=1) + "\n")
    parts = budget(config.batch, decoder_share=config.decoder_share)
    print(table(parts, config.batch))
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="time_budget"))
