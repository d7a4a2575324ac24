"""The kernels that :mod:`mmlk.ops.backends.triton` launches; importing this imports triton."""
import triton
import triton.language as tl

STRIP = 16  # output columns of a tile
ABOVE = 7  # zero rows above the taps: one less than the rows of the largest tile
DEPTH = 64  # of one product of ``correlate``, at most
BELOW = ABOVE + DEPTH // 16  # zero rows below the taps; the last product may run past the last row
_STRIP, _ABOVE, _BELOW = tl.constexpr(STRIP), tl.constexpr(ABOVE), tl.constexpr(BELOW)


@triton.jit
def _product(a, b, acc, PRECISION: tl.constexpr):
    if _INTERPRETED:  # the interpreter would multiply bfloat16's bit patterns
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


_INTERPRETED = tl.constexpr(not isinstance(_product, triton.JITFunction))

# Of ``correlate``. The first keeps the input in the L1 cache and needs the least shared memory; the second prefetches
# past it; the third reads the input half as often and multiplies a tenth more; the fourth reads the taps half as often
# too. 256 tiles of 4 rows are not among them: their sums fill the registers of 4 warps, and spill.
CONFIGS = [triton.Config({'ROWS': 4, 'TIMES': 1}, num_warps=4, num_stages=1),
           triton.Config({'ROWS': 4, 'TIMES': 1}, num_warps=4, num_stages=3),
           triton.Config({'ROWS': 8, 'TIMES': 1}, num_warps=8, num_stages=1),
           triton.Config({'ROWS': 8, 'TIMES': 2}, num_warps=8, num_stages=1)]


@triton.jit(do_not_specialize=['batch', 'channels', 'height', 'columns8', 'before', 'taps', 'start8', 'batch_stride8',
                               'channel_stride8', 'row_stride8'])
def correlate(x_ptr, taps_ptr, bias_ptr, y_ptr, batch, channels, height, columns8, before, taps, start8, batch_stride8,
              channel_stride8, row_stride8, SPAN: tl.constexpr, TILES: tl.constexpr, PART: tl.constexpr,
              HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, TIMES: tl.constexpr):
    """y[h, w] = bias + sum over i, j of taps[i, j] x[h + i - before, w + j - ...], as products with banded matrices.

    A program computes ``TILES`` * ``TIMES`` tiles of ``ROWS`` x 16 outputs of one channel, from any rows and images.
    For its outputs (row o, column p) a tile reads inputs (row i, column j), ``SPAN`` columns of ``taps`` + ``ROWS`` - 1
    rows; the matrix T[(o, p), (i, j)] = taps[i - o, j - p] is the same for all tiles, so that Y = T X with one column
    per tile. T is read straight from the taps: they are framed in zeros, so that nothing need be masked.

    Args:
        x_ptr: (N, C, height, 8 ``columns8``), rows contiguous and 8-element aligned, strides in units of 8.
        taps_ptr: (C, copies, ``ABOVE`` + taps + ``BELOW``, ``SPAN`` + 16). Copy v is shifted left by v, so that any two
            neighbouring 16-bit taps stand in one aligned word of some copy. Column 15 of copy 0 holds the tap of j = p.
        y_ptr: (N, C, height, 8 ``columns8``), contiguous.
        before: Rows of the taps above the centre.
        taps: Rows of the taps.
        start8: First input column that a tile reads, less its first output column, in units of 8.
        SPAN: Input columns that a tile reads, a multiple of 16.
        PART: Of a product's depth (i, j), a power of two up to ``DEPTH``.
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

    row0 = tl.where(t < tiles, top - before, height)  # a tile too many reads nothing
    col0 = left + start8 * 8
    x_tile = x_ptr + c * channel_stride8 * 8 + n * batch_stride8 * 8 + row0.to(tl.int64) * row_stride8 * 8 + col0
    shift = _STRIP - 1 - p
    plane = (_ABOVE + taps + _BELOW) * length
    t_tile = taps_ptr + (c * copies + shift % copies) * plane + (_ABOVE - o) * length + shift // copies * copies
    # Rows of the tiles' input that lie in the map of at least one tile.
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
    """out[r, s] = sum over n, h, w of x[n, h, w + s - before] grad[n, h + above - r, w]: rows (s) times columns (r).

    For float32, which is gathered in words of one number. A program sums one share of the pieces of ``ROWS`` x
    ``COLUMNS`` pixels of one channel, and ``TAPS_H`` x ``TAPS_W`` taps. Each shifted copy of x is gathered, and then
    serves all rows of taps.

    Args:
        x_ptr: (N, C, height, width), unit stride along a row.
        grad_ptr: (N, C, height, ``width`` rounded up to 8), strides in units of 8, as ``x_ptr`` of ``correlate``; zero
            past ``width``.
        out_ptr: (splits, C, taps_h, taps_w), contiguous, float32.
        above, before: Rows and columns of the taps before the centre.
        per_split: Pieces of one share.
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
    # Adding s itself last leaves it a constant of the load's address.
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
        # Rows past the last one meet zeros in b; as unsigned numbers columns before the first are large.
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
    """For 16-bit numbers: what :func:`weigh` computes, from aligned words of eight numbers alone.

    The products P[u, (r, p)] of ``SPAN`` columns u of x and ``WIDTH`` columns p of the gradient, ``ROWS`` rows of taps
    up, are summed over the rows of all images. Tap (r, s) is the sum along one diagonal of P. A program takes one share
    of the rows and strips of one channel, ``ROWS`` rows of taps, and ``TAPS_W`` columns of taps.

    Args:
        x_ptr, grad_ptr: As ``x_ptr`` of ``correlate``, zero past the map's width.
        out_ptr: (splits, C, taps_h, taps_w), contiguous, float32.
        lines: Rows of all images, N height.
        above, before: Rows and columns of the taps before the centre.
        first: First column of taps of the first block; those before column 0 are left out.
        start8: First column of x less the first of the gradient in the first block, in units of 8.
        step8: What is added to that from one block to the next.
        strips: Strips of ``WIDTH`` columns in a row.
        per_split: Pieces of one share, of ``DEPTH`` rows and one strip.
    """
    c = (tl.program_id(0) // splits).to(tl.int64)
    split = tl.program_id(0) % splits
    start = (start8 + tl.program_id(2) * step8) * 8
    columns = columns8 * 8
    u = start + tl.arange(0, SPAN)
    q = tl.arange(0, ROWS * WIDTH)
    p = q % WIDTH
    rise = above - (tl.program_id(1) * ROWS + q // WIDTH)

    # Rows of a piece run on into the next image. All are ``k`` rows on from the first; ``turn`` is what is to be added
    # where that passes an image's end, so that nothing is divided in the loop but the first row.
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
        row = h[:, None] + rise[None, :]  # negative ones are large as unsigned numbers
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
    """Copy maps whose channels are contiguous from or to maps whose rows are, the latter filled up with zeros.

    A program copies ``COLUMNS`` pixels of one row and ``CHANNELS`` channels.

    Args:
        maps_ptr: (N, C, height, 8 ``columns8``), as ``x_ptr`` of ``correlate``.
        last_ptr: (N, C, height, width), unit stride along the channels.
        TO_LAST: Whether it is ``last_ptr`` that is written.
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
