"""The Triton kernels of :mod:`mmlk.ops.backends.triton`, which explains the idea. Importing this module imports triton.

``correlate`` computes forward passes and gradients of the input, ``weigh`` and ``weigh_halves`` the gradient of the
weight, and ``relay`` copies maps between memory formats. Offsets and strides whose names end in 8 are in units of 8
elements: this tells the compiler that addresses are multiples of 16 bytes, so that it can load 16 bytes at once.
"""
import triton
import triton.language as tl

STRIP = 16  # number of output columns of a tile
ABOVE = 7  # number of zero rows above the taps: the rows of the largest tile minus 1
DEPTH = 64  # maximum inner dimension of one matrix product of ``correlate``
BELOW = ABOVE + DEPTH // 16  # number of zero rows below the taps, because the last product may read beyond the last row
_STRIP, _ABOVE, _BELOW = tl.constexpr(STRIP), tl.constexpr(ABOVE), tl.constexpr(BELOW)


@triton.jit
def _product(a, b, acc, PRECISION: tl.constexpr):
    """Returns ``acc + a @ b``, with the sum in float32."""
    if _INTERPRETED:  # the interpreter would multiply the bits of bfloat16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


_INTERPRETED = tl.constexpr(not isinstance(_product, triton.JITFunction))

# Configurations of ``correlate``. The first keeps the input in the L1 cache and needs the least shared memory. The
# second prefetches into shared memory. The third reads the input half as often, and multiplies 10 % more. The fourth
# also reads the taps half as often. 256 tiles of 4 rows are not used: their sums do not fit into the registers of 4
# warps.
CONFIGS = [triton.Config({'ROWS': 4, 'TIMES': 1}, num_warps=4, num_stages=1),
           triton.Config({'ROWS': 4, 'TIMES': 1}, num_warps=4, num_stages=3),
           triton.Config({'ROWS': 8, 'TIMES': 1}, num_warps=8, num_stages=1),
           triton.Config({'ROWS': 8, 'TIMES': 2}, num_warps=8, num_stages=1)]


@triton.jit(do_not_specialize=['batch', 'channels', 'height', 'columns8', 'before', 'taps', 'start8', 'batch_stride8',
                               'channel_stride8', 'row_stride8'])
def correlate(x_ptr, taps_ptr, bias_ptr, y_ptr, batch, channels, height, columns8, before, taps, start8, batch_stride8,
              channel_stride8, row_stride8, SPAN: tl.constexpr, TILES: tl.constexpr, PART: tl.constexpr,
              HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, TIMES: tl.constexpr):
    """Computes y[h, w] = bias + sum over i, j of taps[i, j] x[h + i - before, w + j - ...] by banded matrices.

    A tile is a block of ``ROWS`` x 16 outputs of one channel. A program computes ``TILES`` * ``TIMES`` tiles of one
    channel, which may be of different rows and images. For its outputs (row o, column p), a tile reads the inputs
    (row i, column j) of ``taps`` + ``ROWS`` - 1 rows and ``SPAN`` columns. With the matrix T[(o, p), (i, j)] =
    taps[i - o, j - p], which is the same for all tiles, this is Y = T X, where X and Y have one column per tile. T is
    not stored: it is read from the taps, which are padded with enough zeros for every index to be valid.

    Args:
        x_ptr: (N, C, height, 8 * ``columns8``). Rows are contiguous and start at multiples of 8 elements.
        taps_ptr: (C, copies, ``ABOVE`` + taps + ``BELOW``, ``SPAN`` + 16). Copy v is shifted to the left by v, so that
            any two neighbouring 16-bit taps are one aligned 32-bit word in one of the copies. Column 15 of copy 0 is
            the tap of j = p.
        bias_ptr: (C,); not read unless ``HAS_BIAS``.
        y_ptr: (N, C, height, 8 * ``columns8``), contiguous.
        before: Number of rows of taps above the centre.
        taps: Number of rows of taps.
        start8: Offset of the first input column that a tile reads from its first output column, in units of 8.
        SPAN: Number of input columns that a tile reads, a multiple of 16.
        PART: Number of indices (i, j) in one matrix product, a power of two up to ``DEPTH``.
    """
    together: tl.constexpr = TILES * TIMES
    copies: tl.constexpr = 32 // x_ptr.dtype.element_ty.primitive_bitwidth
    length: tl.constexpr = SPAN + _STRIP
    columns = columns8 * 8
    tiles_h = (height + ROWS - 1) // ROWS
    tiles_w = (columns + _STRIP - 1) // _STRIP
    tiles = batch * tiles_h * tiles_w
    blocks = (tiles + together - 1) // together
    c = (tl.program_id(0) // blocks).to(tl.int64)
    t = tl.program_id(0) % blocks * together + tl.arange(0, together)
    n = (t // (tiles_h * tiles_w)).to(tl.int64)
    top = t // tiles_w % tiles_h * ROWS
    left = t % tiles_w * _STRIP
    m = tl.arange(0, ROWS * _STRIP)
    o, p = m // _STRIP, m % _STRIP

    row0 = tl.where(t < tiles, top - before, height)  # a tile beyond the last one reads nothing
    col0 = left + start8 * 8
    x_tile = x_ptr + c * channel_stride8 * 8 + n * batch_stride8 * 8 + row0.to(tl.int64) * row_stride8 * 8 + col0
    shift = _STRIP - 1 - p
    plane = (_ABOVE + taps + _BELOW) * length
    t_tile = taps_ptr + (c * copies + shift % copies) * plane + (_ABOVE - o) * length + shift // copies * copies
    # The input rows that are inside the map for at least one tile.
    first = tl.maximum(0, before - (tiles_h - 1) * ROWS)
    last = tl.minimum(taps + ROWS - 1, height + before)
    acc = tl.zeros((ROWS * _STRIP, together), tl.float32)
    for start in range(first * SPAN, last * SPAN, PART):
        k = start + tl.arange(0, PART)
        i, j = k // SPAN, k % SPAN
        a = tl.load(t_tile[:, None] + (i * length + j)[None, :])
        row = row0[None, :] + i[:, None]
        col = col0[None, :] + j[:, None]
        b = tl.load(x_tile[None, :] + (i.to(tl.int64) * row_stride8 * 8 + j)[:, None],
                    mask=(row >= 0) & (row < height) & (col >= 0) & (col < columns), other=0)
        acc = _product(a, b, acc, PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + c).to(tl.float32)

    row = top[:, None] + o[None, :]
    col = left[:, None] + p[None, :]
    y_tile = y_ptr + (n * channels + c) * height * columns + top.to(tl.int64) * columns + left
    y = y_tile[:, None] + (o * columns + p)[None, :]
    tl.store(y, tl.trans(acc.to(y_ptr.dtype.element_ty)),
             mask=(t < tiles)[:, None] & (row < height) & (col < columns))


@triton.jit(do_not_specialize=['batch', 'channels', 'height', 'width', 'taps_h', 'taps_w', 'above', 'before',
                               'per_split', 'splits', 'x_batch', 'x_channel', 'x_row', 'grad_batch8', 'grad_channel8',
                               'grad_row8'])
def weigh(x_ptr, grad_ptr, out_ptr, batch, channels, height, width, taps_h, taps_w, above, before, per_split, splits,
          x_batch, x_channel, x_row, grad_batch8, grad_channel8, grad_row8, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
          TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, PRECISION: tl.constexpr):
    """Computes out[r, s] = sum over n, h, w of x[n, h, w + s - before] grad[n, h + above - r, w], for float32.

    This is a matrix product: rows are the shifts s along the width, columns are the shifts r along the height, and the
    inner dimension is the pixels. The shifted inputs need not be aligned, so they are loaded one number at a time; each
    of them is used for all rows of taps. A program computes ``TAPS_H`` x ``TAPS_W`` taps of one channel, from one share
    of the pixels, which are divided into pieces of ``ROWS`` x ``COLUMNS``.

    Args:
        x_ptr: (N, C, height, width), rows contiguous.
        grad_ptr: (N, C, height, ``width`` rounded up to a multiple of 8), as ``x_ptr`` of ``correlate``. Columns beyond
            ``width`` are zero.
        out_ptr: (splits, C, taps_h, taps_w), contiguous, float32.
        above, before: Number of rows of taps above the centre, and of columns of taps to the left of it.
        per_split: Number of pieces in one share.
        splits: Number of shares.
    """
    c = (tl.program_id(0) // splits).to(tl.int64)
    split = tl.program_id(0) % splits
    r = tl.program_id(1) * TAPS_H + tl.arange(0, TAPS_H)
    s = tl.program_id(2) * TAPS_W + tl.arange(0, TAPS_W)
    k = tl.arange(0, ROWS * COLUMNS)
    i, j = k // COLUMNS, k % COLUMNS
    columns = (width + 7) // 8 * 8
    pieces_w = (columns + COLUMNS - 1) // COLUMNS
    pieces = (height + ROWS - 1) // ROWS * pieces_w

    rise = above - r
    shift = s - before
    # s is added last, so that it is a constant offset of the load's address.
    x_tile = x_ptr + (c * x_channel + tl.program_id(2) * TAPS_W - before) + tl.arange(0, TAPS_W)
    g_tile = grad_ptr + c * grad_channel8 * 8 + rise.to(tl.int64) * grad_row8 * 8
    acc = tl.zeros((TAPS_W, TAPS_H), tl.float32)
    for piece in range(split * per_split, tl.minimum((split + 1) * per_split, batch * pieces)):
        n = (piece // pieces).to(tl.int64)
        h = piece % pieces // pieces_w * ROWS + i
        w = piece % pieces_w * COLUMNS + j
        row = h[:, None] + rise[None, :]
        b = tl.load(g_tile[None, :] + (n * grad_batch8 * 8 + h.to(tl.int64) * grad_row8 * 8 + w)[:, None],
                    mask=(row >= 0) & (row < height) & ((h < height) & (w < columns))[:, None], other=0)
        col = w[None, :] + shift[:, None]
        # Rows beyond the last one are multiplied by zeros of b. Negative columns are large as unsigned numbers.
        a = tl.load(x_tile[:, None] + (n * x_batch + tl.minimum(h, height - 1).to(tl.int64) * x_row + w)[None, :],
                    mask=col.to(tl.uint32, bitcast=True) < width.to(tl.uint32, bitcast=True), other=0)
        acc = _product(a, b, acc, PRECISION)
    out = out_ptr + (split * channels + c) * taps_h * taps_w + r[None, :] * taps_w + s[:, None]
    tl.store(out, acc, mask=(r < taps_h)[None, :] & (s < taps_w)[:, None])


@triton.jit(do_not_specialize=['lines', 'height', 'columns8', 'channels', 'taps_h', 'taps_w', 'above', 'before',
                               'first', 'start8', 'step8', 'strips', 'per_split', 'splits', 'x_batch8', 'x_channel8',
                               'x_row8', 'grad_batch8', 'grad_channel8', 'grad_row8'])
def weigh_halves(x_ptr, grad_ptr, out_ptr, lines, height, columns8, channels, taps_h, taps_w, above, before, first,
                 start8, step8, strips, per_split, splits, x_batch8, x_channel8, x_row8, grad_batch8, grad_channel8,
                 grad_row8, SPAN: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
                 TAPS_W: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr):
    """Computes what :func:`weigh` computes, for 16-bit numbers, by aligned loads of eight numbers only.

    Shifts along the width would make loads unaligned. So the products of all pairs of a column u of x and a column p of
    the gradient are computed first: P[u, (r, p)] = sum over all rows h of x[h, u] grad[h + above - r, p], a matrix
    product whose inner dimension is the rows of all images. The tap (r, s) is the sum of P along the diagonal u - p =
    s - before. A program computes ``ROWS`` rows and ``TAPS_W`` columns of taps of one channel, from ``SPAN`` columns u
    and ``WIDTH`` columns p of one share of the rows and strips.

    Args:
        x_ptr, grad_ptr: As ``x_ptr`` of ``correlate``. Columns beyond the map's width are zero.
        out_ptr: (splits, C, taps_h, taps_w), contiguous, float32.
        lines: Number of rows of all images, N * height.
        above, before: Number of rows of taps above the centre, and of columns of taps to the left of it.
        first: First column of taps of the first block. It may be negative; columns before 0 are left out.
        start8: Offset of the first column of x from the first one of the gradient in the first block, in units of 8.
        step8: Increment of this offset from one block to the next, in units of 8.
        strips: Number of strips of ``WIDTH`` columns in a row.
        per_split: Number of pieces in one share. A piece is ``DEPTH`` rows of one strip.
        splits: Number of shares.
    """
    c = (tl.program_id(0) // splits).to(tl.int64)
    split = tl.program_id(0) % splits
    start = (start8 + tl.program_id(2) * step8) * 8
    columns = columns8 * 8
    u = start + tl.arange(0, SPAN)
    q = tl.arange(0, ROWS * WIDTH)
    p = q % WIDTH
    rise = above - (tl.program_id(1) * ROWS + q // WIDTH)

    # The rows of a piece may continue in the next image. Row k of a piece is k rows after the first one. If that is
    # beyond the end of an image, the offset ``turn`` is added. So only the first row needs a division in the loop.
    k = tl.arange(0, DEPTH)
    k_n, k_h = (k // height).to(tl.int64), k % height
    x_tile = x_ptr + c * x_channel8 * 8 + u[:, None] + (k_n * x_batch8 * 8 + k_h.to(tl.int64) * x_row8 * 8)[None, :]
    g_tile = (grad_ptr + c * grad_channel8 * 8 + (k_n * grad_batch8 * 8 + k_h.to(tl.int64) * grad_row8 * 8)[:, None]
              + (rise.to(tl.int64) * grad_row8 * 8 + p)[None, :])
    x_turn = (x_batch8 - height.to(tl.int64) * x_row8) * 8
    g_turn = (grad_batch8 - height.to(tl.int64) * grad_row8) * 8
    acc = tl.zeros((SPAN, ROWS * WIDTH), tl.float32)
    pieces = strips * ((lines + DEPTH - 1) // DEPTH)
    for piece in range(split * per_split, tl.minimum((split + 1) * per_split, pieces)):
        left = piece % strips * WIDTH
        line = piece // strips * DEPTH
        n, top = (line // height).to(tl.int64), line % height
        inside = k < lines - line
        turn = top + k_h >= height
        h = tl.where(inside, top + k_h - tl.where(turn, height, 0), -(1 << 30))
        row = h[:, None] + rise[None, :]  # negative rows are large as unsigned numbers
        b = tl.load(g_tile + (n * grad_batch8 * 8 + top.to(tl.int64) * grad_row8 * 8 + left)
                    + tl.where(turn, g_turn, 0)[:, None],
                    mask=(row.to(tl.uint32, bitcast=True) < height.to(tl.uint32, bitcast=True))
                    & (p < columns - left)[None, :], other=0)
        col = (left + u).to(tl.uint32, bitcast=True)
        a = tl.load(x_tile + (n * x_batch8 * 8 + top.to(tl.int64) * x_row8 * 8 + left)
                    + tl.where(turn, x_turn, 0)[None, :],
                    mask=(col < columns.to(tl.uint32, bitcast=True))[:, None] & inside[None, :], other=0)
        acc = _product(a, b, acc, PRECISION)

    s = first + tl.program_id(2) * TAPS_W + tl.arange(0, TAPS_W)
    diagonal = p[None, :] + (s - before - start)[:, None]
    found = tl.gather(acc, tl.minimum(tl.maximum(diagonal, 0), SPAN - 1), 0)
    found = tl.where((diagonal >= 0) & (diagonal < SPAN), found, 0.)
    found = tl.sum(tl.reshape(found, (TAPS_W, ROWS, WIDTH)), 2)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    out = out_ptr + (split * channels + c) * taps_h * taps_w + r[None, :] * taps_w + s[:, None]
    tl.store(out, found, mask=(r < taps_h)[None, :] & ((s >= 0) & (s < taps_w))[:, None])


@triton.jit
def relay(maps_ptr, last_ptr, channels, height, width, columns8, maps_batch8, maps_channel8, maps_row8, last_batch,
          last_row, last_column, TO_LAST: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """Copies maps whose channels are contiguous to maps whose rows are contiguous and padded with zeros, or back.

    A program copies ``COLUMNS`` pixels of one row and ``CHANNELS`` channels.

    Args:
        maps_ptr: (N, C, height, 8 * ``columns8``), as ``x_ptr`` of ``correlate``.
        last_ptr: (N, C, height, width), channels contiguous.
        TO_LAST: If True, copies from ``maps_ptr`` to ``last_ptr``, otherwise the other way.
    """
    n = (tl.program_id(0) // height).to(tl.int64)
    h = (tl.program_id(0) % height).to(tl.int64)
    w = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    maps = (maps_ptr + n * maps_batch8 * 8 + h * maps_row8 * 8
            + (c.to(tl.int64) * maps_channel8 * 8)[:, None] + w[None, :])
    last = (last_ptr + n * last_batch + h * last_row + (w.to(tl.int64) * last_column)[None, :] + c[:, None])
    map_mask = (c < channels)[:, None] & (w < columns8 * 8)[None, :]
    last_mask = (c < channels)[:, None] & (w < width)[None, :]
    if TO_LAST:
        tl.store(last, tl.load(maps, mask=map_mask, other=0), mask=last_mask)
    else:
        tl.store(maps, tl.load(last, mask=last_mask, other=0), mask=map_mask)
