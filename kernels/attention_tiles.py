"""Load and store the tiles of a head, multiply them, and compute exp2: shared by the attention kernels.

D is the head width, DP that width padded to a power of two.
"""

# The arguments of a kernel have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl


@triton.jit
def load_head(base, rows, stride, N, D: tl.constexpr, DP: tl.constexpr, MASKED: tl.constexpr):
    """Load (rows, DP) of one head, zeros past the head's width and, if masked, past N."""
    dims = tl.arange(0, DP)
    places = base + rows[:, None].to(tl.int64) * stride + dims[None, :]
    if MASKED:
        values = tl.load(places, mask=(rows < N)[:, None] & (dims < D)[None, :], other=0.0)
    elif D < DP:
        values = tl.load(places, mask=(dims < D)[None, :], other=0.0)
    else:
        values = tl.load(places)
    return values


@triton.jit
def load_head_and_ones(base, ones, rows, stride, N, D: tl.constexpr, DP: tl.constexpr, MASKED: tl.constexpr):
    """Load (rows, DP) of one head, ones past the head's width, read from `ones`; if masked, zeros past N."""
    dims = tl.arange(0, DP)[None, :]
    places = tl.where(dims < D, base + rows[:, None].to(tl.int64) * stride + dims, ones + (dims - D))
    return tl.load(places, mask=(rows < N)[:, None], other=0.0) if MASKED else tl.load(places)


@triton.jit
def store_head(base, rows, values, stride, N, D: tl.constexpr, DP: tl.constexpr):
    """Store (rows, DP) of one head in the type of the destination, nothing past N and the head's width."""
    dims = tl.arange(0, DP)
    places = base + rows[:, None].to(tl.int64) * stride + dims[None, :]
    tl.store(places, values.to(base.dtype.element_ty), mask=(rows < N)[:, None] & (dims < D)[None, :])


@triton.jit
def store_sum(place, values, D: tl.constexpr, DP: tl.constexpr):
    """Store the sum of (rows, DP) of one head down its columns, in float32."""
    dims = tl.arange(0, DP)
    tl.store(place + dims, tl.sum(values.to(tl.float32), axis=0), mask=dims < D)


@triton.jit
def store_key_and_value_sums(place, g, C, D: tl.constexpr, DP: tl.constexpr):
    """Store what a block of tokens of one head adds to the gradients of the biases of k and v.

    For k it is 0, because its bias adds the same to all scores of a query. For v it is the gradient of the output,
    because the weights of a query sum to 1.
    """
    dims = tl.arange(0, DP)
    tl.store(place + C + dims, tl.zeros((DP,), tl.float32), mask=dims < D)
    store_sum(place + 2 * C, g, D, DP)


@triton.jit
def product(a, b, acc, WIDEN: tl.constexpr):
    """Return a b + acc, summed in float32. `WIDEN` is for the interpreter, which multiplies bfloat16 as integers."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def held(block, DP: tl.constexpr, HELD: tl.constexpr, WIDEN: tl.constexpr):
    """Return the block, multiplied by the identity if HELD: wgmma reads the result of a product from registers."""
    if HELD:
        dims = tl.arange(0, DP)
        identity = tl.where(dims[:, None] == dims[None, :], 1.0, 0.0).to(block.dtype)
        block = product(block, identity, None, WIDEN).to(block.dtype)
    return block


@triton.jit
def exp2_polynomial(scores, scale2, offset):
    """Return exp2(scores * scale2 - offset) without exp2, with a relative error of 8e-5, for exponents of at most 0.

    The exponent is clamped to [-64, 0] by a saturated FMA on 1 + exponent / 64 and split into its nearest integer,
    which adding a large number leaves in the low bits, and a rest in [-1/2, 1/2] for the minimax cubic.
    """
    shifted = tl.minimum(tl.maximum(scores * (scale2 * 0.015625) + (1.0 - offset * 0.015625), 0.0), 1.0)
    rounded = shifted + 196607.0  # 1.5 * 2**17 - 1: float32 has steps of 1/64 there
    rest = shifted - (rounded - 196607.0)
    cubic = ((14462.922 * rest + 993.735157) * rest + 44.3687031) * rest + 0.999928074
    bits = cubic.to(tl.int32, bitcast=True) + (rounded.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def left_and_right(block, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Split a block into its left and right half. Each thread holds values of both, so no data moves."""
    return tl.split(tl.permute(tl.reshape(block, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def exp2_weights(
    scores, scale2, offset, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr, OF: tl.constexpr
):
    """Return exp2(scores * scale2 - offset), PART of OF columns by the polynomial."""
    if PART == 0:
        weights = tl.exp2(scores * scale2 - offset)
    elif PART == OF:
        weights = exp2_polynomial(scores, scale2, offset)
    else:
        left, right = left_and_right(scores, ROWS, COLUMNS)
        HALF: tl.constexpr = OF // 2
        LEFT: tl.constexpr = PART - HALF if PART > HALF else 0
        left = exp2_weights(left, scale2, offset, ROWS, COLUMNS // 2, LEFT, HALF)
        right = exp2_weights(right, scale2, offset, ROWS, COLUMNS // 2, PART - LEFT, HALF)
        weights = tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (ROWS, COLUMNS))
    return weights


@triton.jit
def minus_in_columns(block, values, D: tl.constexpr, DP: tl.constexpr):
    """Put -values into the first three padded columns of a block, as a sum of three numbers of its type."""
    dims = tl.arange(0, DP)[None, :]
    high = (-values).to(block.dtype)
    rest = -values - high.to(tl.float32)
    middle = rest.to(block.dtype)
    low = (rest - middle.to(tl.float32)).to(block.dtype)
    return tl.where(dims == D, high, tl.where(dims == D + 1, middle, tl.where(dims == D + 2, low, block)))


@triton.jit
def fragments(block, ROWS: tl.constexpr, DP: tl.constexpr):
    """Reshape (ROWS, DP) to (DP / 8, 2 ROWS, 4), the layout of a product in registers, so no data moves."""
    parts = tl.reshape(block, (ROWS // 16, 2, 8, DP // 8, 4, 2))
    return tl.reshape(tl.permute(parts, (3, 0, 2, 4, 1, 5)), (DP // 8, 2 * ROWS, 4))


@triton.jit
def from_fragments(parts, ROWS: tl.constexpr, DP: tl.constexpr):
    """Invert `fragments`: return (ROWS, DP)."""
    parts = tl.reshape(parts, (DP // 8, ROWS // 16, 8, 4, 2, 2))
    return tl.reshape(tl.permute(parts, (1, 4, 2, 0, 3, 5)), (ROWS, DP))
