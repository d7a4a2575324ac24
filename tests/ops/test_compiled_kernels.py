"""What the Triton kernels become on GPUs that need not be there: registers, stack, shared memory, instructions.

They are compiled by Triton and by the assembler that comes with it, and taken apart by its disassembler. The suite
compiles what runs most; ``MMLK_EVERY_KERNEL=1`` compiles every configuration of every kernel, for some minutes.
"""
import itertools
import os
import re
import subprocess
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Dict, NamedTuple

import pytest

from mmlk.ops.backends import triton as triton_backend
from mmlk.ops.backends.triton import _Axes, _HalfTiles

CAPABILITIES = (80, 90, 100, 120)
SHARED = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}  # bytes of a block; 80 stands for 86 and 89 too
TYPES = (('float16', 'tf32'), ('bfloat16', 'tf32'), ('float32', 'tf32'), ('float32', 'ieee'))
EVERY = os.environ.get('MMLK_EVERY_KERNEL') == '1'


def _why_not() -> str:
    if triton_backend._triton_version() < (3, 4):
        return 'there is no triton 3.4 or later'
    if triton_backend._interpreting():
        return 'TRITON_INTERPRET is set'
    import triton
    tools = Path(triton.__file__).parent / 'backends/nvidia/bin'
    return '' if all((tools / name).exists() for name in ('ptxas', 'cuobjdump')) else 'this triton came without ptxas'


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not())


class Report(NamedTuple):
    """Of one kernel on one GPU: bytes of ``stack`` and ``shared`` memory, and how often each instruction occurs, in
    all and in the ``loop`` that most products are in. Names of loads and stores keep their widths."""

    registers: int
    stack: int
    shared: int
    ptx: str
    all: Dict[str, int]
    loop: Dict[str, int]

    def products(self) -> int:
        """Of 16 x 8 x 16 half-precision numbers, or what is as much, in a turn of the loop."""
        return self.loop['HMMA']

    def loads(self) -> int:
        """From global memory, in a turn of the loop."""
        return sum(n for name, n in self.loop.items() if name.startswith(('LDG.', 'LDGSTS.')))


def _instructions(lines) -> Counter:
    found = Counter()
    for text in lines:
        name, *rest = re.match(r'(?:@!?U?P\w+ )?(\w+)((?:\.\w+)*)', text).groups()
        found[name + ''.join(rest) if name in ('LDG', 'LDGSTS', 'STG', 'STS', 'LDS') else name] += 1
    return found


def _loop(sass: str) -> Counter:
    """Instructions between a branch back and where it goes: the shortest loop with most products in it."""
    lines = [(int(at, 16), text) for at, text in re.findall(r'^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;', sass, re.M)]
    loops = [[]]
    for at, text in lines:
        target = re.search(r'\bBRA\b.* (0x[0-9a-f]+)$', text)
        if target and int(target[1], 16) < at:
            loops.append([t for a, t in lines if int(target[1], 16) <= a <= at])

    def products(loop):
        return sum(bool(re.search(r'\b(HMMA|HGMMA|FFMA2?)\b', text)) for text in loop)

    return _instructions(max(loops, key=lambda loop: (products(loop), -len(loop))))


@lru_cache(maxsize=None)
def report(name: str, dtype: str, capability: int, num_warps: int, num_stages: int, constants: tuple,
           sixteens: tuple = ()) -> Report:
    """Compile a kernel; ``constants`` are pairs of a name and a value, ``sixteens`` names of multiples of 16."""
    import tempfile

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmlk.ops.backends import triton_kernels
    function, constants = getattr(triton_kernels, name), dict(constants)
    kind = {'float16': '*fp16', 'bfloat16': '*bf16', 'float32': '*fp32'}[dtype]
    signature = {arg: 'constexpr' if arg in constants else 'i32' if not arg.endswith('_ptr') else
                 '*fp32' if arg == 'out_ptr' else kind for arg in function.arg_names}
    aligned = {(i, ): [['tt.divisibility', 16]] for i, arg in enumerate(function.arg_names)
               if arg.endswith('_ptr') or arg in sixteens}
    compiled = triton.compile(ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned),
                              target=GPUTarget('cuda', capability, 32),
                              options=dict(num_warps=num_warps, num_stages=num_stages))
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(compiled.asm['cubin'])
        file.flush()
        usage, sass = (subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
                       for option in ('-res-usage', '-sass'))
    registers, stack = map(int, re.search(r'REG:(\d+) STACK:(\d+)', usage).groups())
    every = _instructions(re.findall(r'^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;', sass, re.M))
    return Report(registers, stack, compiled.metadata.shared, compiled.asm['ptx'], every, _loop(sass))


def correlate(dtype, precision, capability, config, size=None, span=48) -> Report:
    """Of ``correlate`` at the largest size that the backend launches, or a smaller one."""
    size = size or (64 if precision == 'ieee' else 128)
    constants = dict(SPAN=span, TILES=size, PART=64 if dtype != 'float32' else 32, HAS_BIAS=True, PRECISION=precision,
                     **config.kwargs)
    return report('correlate', dtype, capability, config.num_warps, config.num_stages, tuple(sorted(constants.items())))


def weigh(precision, capability, taps_h=32, taps_w=32) -> Report:
    constants = dict(ROWS=1, COLUMNS=64, TAPS_H=taps_h, TAPS_W=taps_w, PRECISION=precision)
    warps = 2 if taps_h * taps_w < 1024 else 4
    return report('weigh', 'float32', capability, warps, 1, tuple(sorted(constants.items())))


def weigh_halves(dtype, capability, tiles) -> Report:
    constants = dict(SPAN=tiles.span, WIDTH=tiles.width, ROWS=tiles.rows, TAPS_W=tiles.taps, DEPTH=tiles.depth,
                     PRECISION='tf32')
    return report('weigh_halves', dtype, capability, 4, 1, tuple(sorted(constants.items())))


def configs():
    from mmlk.ops.backends import triton_kernels
    return triton_kernels.CONFIGS


def tiles(width=128, taps=31, batch=2):
    return _HalfTiles.of(_Axes(width, width, taps, taps, taps // 2, taps // 2), batch)


def correlate_cases():
    """Type, precision, capability, the number of a configuration."""
    if not EVERY:  # half precision everywhere as it is launched untimed, and all configurations on the two oldest
        return [(*TYPES[0], capability, i) for capability in CAPABILITIES for i in range(4) if capability < 100 or not i
                ] + [(*types, 80, 0) for types in TYPES[1:]]
    return [(*types, *rest) for types, *rest in itertools.product(TYPES, CAPABILITIES, range(4))]


@pytest.mark.parametrize('dtype, precision, capability, number', correlate_cases())
def test_correlate_fits_and_keeps_its_sums_in_registers(dtype, precision, capability, number):
    config = configs()[number]
    for size in (None, 16, 32, 64) if EVERY else (None, ):
        for span in (16, 48, 80) if EVERY else (48, ):
            found = correlate(dtype, precision, capability, config, size, span)
            assert found.shared <= SHARED[capability]
            assert found.registers * config.num_warps * 32 <= 65536
            if precision == 'tf32':
                assert found.stack == 0 and not found.all['LDL'] and not found.all['STL']
                assert re.search(r'\b(wgmma\.mma_async|mma\.sync|tcgen05\.mma)', found.ptx)
            else:  # the assembler keeps one or two numbers that are used once outside of the registers it could have
                assert found.stack <= 16 and found.loop['LDL'] <= 2


def test_256_tiles_of_4_rows_would_spill():
    """Which is why no configuration has them; and the test above can fail."""
    config = configs()[0]
    found = correlate('float16', 'tf32', 80, config, size=256)
    assert config.kwargs == {'ROWS': 4, 'TIMES': 1} and config.num_warps == 4
    assert found.stack > 0 and found.loop['LDL'] > 0


@pytest.mark.parametrize('number', range(4))
def test_correlate_reads_words_and_multiplies_most_of_the_time(number):
    config = configs()[number]
    found = correlate('float16', 'tf32', 80, config)
    assert found.products() == 64 * config.kwargs['TIMES']
    assert found.loads() <= 24
    assert not any('U16' in name for name in found.loop)
    assert sum(found.loop.values()) <= 5 * found.products()
    hopper = correlate('float16', 'tf32', 90, config)
    assert hopper.loop['HGMMA'] == 4 and sum(hopper.loop.values()) <= 210


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_what_the_backend_launches_is_what_is_compiled_here(dtype, monkeypatch):
    """The launches of a training step at RepLKNet's largest map, caught before they need a GPU."""
    import torch

    from mmlk.ops.backends import ConvProblem, triton_kernels
    launched = {}

    class Caught:

        def __init__(self, name):
            self.name, self.arguments = name, getattr(triton_kernels, name).arg_names

        def __getitem__(self, grid):
            return lambda *args, num_warps, num_stages, **others: launched.setdefault(
                self.name, (num_warps, num_stages, {k: v for k, v in others.items() if k in self.arguments}))

    monkeypatch.setattr(triton_backend, '_interpreting', lambda: True)  # so that it runs on the CPU
    for name in ('correlate', 'weigh', 'weigh_halves'):
        monkeypatch.setattr(triton_kernels, name, Caught(name))
    x, weight = (torch.zeros(s, dtype=getattr(torch, dtype)) for s in ((2, 128, 128, 128), (128, 1, 31, 31)))
    backend, given = triton_backend.Triton(), ConvProblem.of(x, weight)
    backend.forward(x, weight, weight[:, 0, 0, 0], given)
    backend.gradients(x, x, weight, given)
    monkeypatch.undo()
    half, precision = dtype == 'float16', 'tf32' if dtype == 'float16' else 'ieee'
    assert set(launched) == {'correlate', 'weigh_halves' if half else 'weigh'}
    before = report.cache_info().misses
    correlate(dtype, precision, 80, configs()[0])
    weigh_halves(dtype, 80, tiles()) if half else weigh(precision, 80)
    compiled = report.cache_info().misses
    for name, (num_warps, num_stages, constants) in launched.items():
        found = report(name, dtype, 80, num_warps, num_stages, tuple(sorted(constants.items())))
        assert found.shared <= SHARED[80] and found.stack == 0
    assert report.cache_info().misses == compiled >= before  # each was known already


def halves_cases():
    shapes = [(128, 31, 2), (32, 27, 64), (64, 31, 64), (64, 63, 64), (16, 13, 64), (128, 13, 2)]
    return [(dtype, capability, *shape) for dtype in ('float16', 'bfloat16')[:2 if EVERY else 1]
            for capability in CAPABILITIES for shape in shapes if EVERY or capability == 80 or shape == shapes[0]]


@pytest.mark.parametrize('dtype, capability, width, taps, batch', halves_cases())
def test_the_gradient_of_half_precision_weights_reads_eight_numbers_at_a_time(dtype, capability, width, taps, batch):
    found = weigh_halves(dtype, capability, tiles(width, taps, batch))
    assert found.shared <= SHARED[capability] and found.registers * 128 <= 65536
    assert found.stack == 0 and not found.all['LDL'] and not found.all['STL']
    loads = [name for name in found.all if name.startswith('LDG')]
    assert loads and all(name.endswith('.128') for name in loads)
    if (width, capability) == (128, 80):
        assert found.loads() < found.products() / 2
    if (width, taps, capability) == (128, 31, 80):
        assert (found.products(), found.loads()) == (64, 12)
        assert sum(found.loop.values()) <= 400


@pytest.mark.parametrize('precision, capability', [(precision, capability) for precision in ('ieee', 'tf32')
                                                   for capability in CAPABILITIES if EVERY or capability < 100])
def test_the_gradient_of_float32_weights_keeps_its_sums_in_registers(precision, capability):
    for taps in ((32, 32), (16, 16), (64, 64), (64, 16)) if EVERY else ((32, 32), ):
        found = weigh(precision, capability, *taps)
        assert found.shared <= SHARED[capability]
        # the assembler of Triton 3.6 keeps four values of one kernel on the stack
        allowed = 4 if triton_backend._triton_version() < (3, 7) else 0
        assert found.stack == 4 * found.all['STL'] and max(found.all['LDL'], found.all['STL']) <= allowed
        assert bool(re.search(r'\b(wgmma\.mma_async|mma\.sync|tcgen05\.mma)', found.ptx)) == (precision == 'tf32')


@pytest.mark.parametrize('capability', CAPABILITIES if EVERY else (80, 90))
@pytest.mark.parametrize('to_last', [False, True])
def test_maps_are_laid_anew_eight_numbers_at_a_time(to_last, capability):
    constants = dict(TO_LAST=to_last, COLUMNS=64, CHANNELS=64)
    found = report('relay', 'float16', capability, 4, 1, tuple(sorted(constants.items())),
                   ('channels', 'last_batch', 'last_row', 'last_column'))
    moves = {name: n for name, n in found.all.items() if name.startswith(('LDG', 'STG'))}
    assert found.stack == 0 and moves == {'LDG.E.128': 4, 'STG.E.128': 4}
