"""The parts of ``mmlk gpu-check``: the depthwise operator on a GPU, its tests, precision and times, and RepLKNet-31B.

Pure PyTorch: it runs on a machine without an OpenMMLab package.
"""
import copy
import functools
import importlib.util
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, Callable, Dict

import torch
from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d, depthwise_conv2d
from mmlk.ops.backends import TABLE, ConvProblem, get
from mmlk.ops.benchmark import Case, describe, machine_bandwidth, machine_peak, measure, table, timed, turns
from mmlk.ops.reference import depthwise_conv2d_reference
from mmlk.reparam import ConvNorm, ReparamLargeKernel

REPO = Path(__file__).resolve().parent.parent.parent
SHARES = {'warm': 0.10, 'precision': 0.10, 'passes': 0.15, 'tests': 0.25, 'models': 0.25, 'grid': 0.15}  # of the time
HALVES = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.float32: 2e-6}  # as tests/ops/cases.py has them


class Report:
    """The results, which are printed and written to two files. Each new line rewrites the files."""

    def __init__(self, out: Path, seconds: float):
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.ends, self.began = out, time.monotonic() + seconds, time.monotonic()
        self.figures, self.text, self.failures = {}, [], []

    def say(self, *lines: str) -> None:
        print(*lines, sep='\n', flush=True)
        self.text.extend(lines)
        self.save()

    def save(self) -> None:
        figures = {**self.figures, 'failures': self.failures, 'seconds': round(time.monotonic() - self.began, 1)}
        (self.out / 'check.md').write_text('\n'.join(self.text) + '\n')
        (self.out / 'check.json').write_text(json.dumps(figures, indent=1) + '\n')

    def row(self, part: str, **values) -> None:
        """Adds a row to the table of a part."""
        rows = self.figures.setdefault(part, [])
        rows.append(values)
        if len(rows) == 1:
            self.say('', f'| {" | ".join(values)} |', '|' + ' --- |' * len(values))
        self.say('| ' + ' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in values.values()) + ' |')

    def expect(self, holds: bool, what: str) -> str:
        if not holds:
            self.failures.append(what)
        return 'ok' if holds else 'FAILED'


def milliseconds(call, device: torch.device, least: int = 5, budget: float = 0.1) -> float:
    """Returns the median milliseconds of a call. On a GPU, batches of calls are timed, to hide the launch overhead."""
    call()
    once = timed(call, device)
    if device.type != 'cuda':
        return 1e3 * once
    batch = max(1, min(50, int(budget / least / max(once, 1e-6))))

    def several():
        for _ in range(batch):
            call()

    return 1e3 * statistics.median(timed(several, device) / batch for _ in range(least))


def passes_of(quick: bool) -> list:
    """Returns the problems, (N, C, H, W, kh, kw), whose passes are timed separately."""
    if quick:
        return [(1, 1, 8, 8, 9, 9)]
    return [(64, 384, 32, 32, 31, 31), (8, 128, 128, 128, 31, 31), (32, 512, 14, 14, 27, 27), (16, 128, 56, 56, 31, 31),
            (2, 256, 64, 64, 29, 29), (16, 384, 64, 64, 31, 31), (16, 96, 56, 56, 51, 5), (16, 96, 56, 56, 13, 13)]


def check_warm(report: Report, args: Namespace, left: Callable[[], float]) -> None:
    """Compiles the kernels of later parts in parallel processes. Triton caches them on the disk."""
    if args.device.type != 'cuda':
        return
    command = [sys.executable, '-m', 'mmlk', 'gpu-check', '--warm']
    children = [subprocess.Popen([*command, str(i)], stdout=subprocess.DEVNULL)
                for i in range(len(passes_of(False)))]
    for child in children:
        try:
            child.wait(max(1, left()))
        except subprocess.TimeoutExpired:
            child.kill()
    report.say('', f'Compiled in {time.monotonic() - report.began:.0f} s.')


def warm(number: int) -> None:
    """The function that a child process of :func:`check_warm` runs."""
    n, c, h, w, kh, kw = passes_of(False)[number]
    for dtype in (*HALVES[:1], torch.float32, *HALVES[1:]):
        x, weight = (torch.randn(s, device='cuda').to(dtype) for s in ((n, c, h, w), (c, 1, kh, kw)))
        backend, problem = get('triton', ConvProblem.of(x, weight)), ConvProblem.of(x, weight)
        backend.forward(x, weight, weight[:, 0, 0, 0], problem)
        backend.gradients(x, x, weight, problem)


def check_tests(report: Report, args: Namespace, left: Callable[[], float]) -> None:
    """Runs the tests of the Triton backend that need a GPU, or with ``--quick`` those that need none."""
    if not (REPO / 'tests' / 'ops' / 'test_triton.py').is_file():
        report.say('', 'tests: not run, they are part of a checkout and not of an installed package')
        return
    if importlib.util.find_spec('pytest') is None:
        report.say('', 'tests: not run, pytest is not installed')
        return
    wanted = 'estimates or TestConfigurations' if args.quick else 'not interpreted'
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests/ops/test_triton.py', '-k', wanted]
    if importlib.util.find_spec('xdist') and not args.quick:
        command += ['-n', str(min(8, os.cpu_count() or 1))]
    environment = {name: value for name, value in os.environ.items() if name != 'TRITON_INTERPRET'}
    log = report.out / 'tests.log'
    with open(log, 'w') as file:
        child = subprocess.Popen(command, cwd=REPO, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            code = child.wait(max(5, left()))
        except subprocess.TimeoutExpired:
            child.terminate()
            child.wait()
            code = None
    lines = log.read_text().splitlines()
    failed = [line for line in lines if line.startswith(('FAILED', 'ERROR'))]
    if code is None:  # what came so far counts
        dots = ''.join(re.findall(r'^[.sxFE]+(?= |$)', '\n'.join(lines), re.M))  # a letter per test
        verdict = report.expect('F' not in dots and 'E' not in dots, 'tests: one failed')
        report.row('tests', which=wanted, result=f'stopped when its time was over: {lines[-1] if lines else ""}',
                   verdict=verdict)
        return
    report.row('tests', which=wanted, result=lines[-1] if lines else '',
               verdict=report.expect(code == 0, 'tests failed'))
    for line in failed:
        report.say(line)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def check_precision(report: Report, args: Namespace, left: Callable[[], float]) -> None:
    """Compares all backends, the automatic choice and PyTorch's convolution with float64, on equal inputs."""
    shapes = [(1, 2, 6, 8, 9, 9)] if args.quick else [
        (2, 16, 56, 56, 31, 31), (2, 16, 56, 55, 31, 31), (4, 16, 14, 14, 27, 27), (2, 16, 40, 40, 51, 5),
        (1, 4, 200, 304, 31, 31)]
    for shape, dtype, last in itertools.product(shapes, TOLERANCE, (False, True)):
        n, c, h, w, kh, kw = shape
        torch.manual_seed(0)
        x, weight, bias, grad = (torch.randn(s).to(args.device, dtype) for s in (
            (n, c, h, w), (c, 1, kh, kw), (c, ), (n, c, h, w)))
        if last:
            x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
        exact = [t.double().requires_grad_() for t in (x, weight, bias)]
        out = depthwise_conv2d_reference(*exact)
        expected = [out.detach(), *torch.autograd.grad(out, exact, grad.double())]

        def stock(x, weight, bias):
            return nn.functional.conv2d(x, weight, bias, padding=(kh // 2, kw // 2), groups=c)

        problem = ConvProblem.of(x, weight)
        calls: Dict[str, Callable[..., Tensor]] = {
            name: functools.partial(depthwise_conv2d, backend=name)
            for name in (b.name for b in TABLE if b.can_run(problem)[0])}
        for name, call in {**calls, 'chosen': depthwise_conv2d, 'stock': stock}.items():
            if left() < 0:
                return
            leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
            try:
                out = call(*leaves)
                errors = [relative_error(*pair) for pair in zip((out.detach(), *torch.autograd.grad(out, leaves, grad)),
                                                                expected)]
            except Exception as error:  # one backend that fails must not end the check
                verdict = report.expect(name == 'stock', f'{name}, {dtype}, {shape}: {error!r:.200}')
                report.row('precision', shape=shape, dtype=str(dtype)[6:], channels_last=last, backend=name, output='',
                           input='', weight='', bias='', verdict=verdict)
                continue
            # the gradient of a bias is a plain sum, which PyTorch rounds once per share
            bad = max(errors[:3]) > TOLERANCE[dtype] or not errors[3] < 10 * TOLERANCE[dtype]
            verdict = '' if name == 'stock' else report.expect(
                not bad, f'precision of {name}, {dtype}, {shape}, channels_last {last}: {errors}')
            report.row('precision', shape=shape, dtype=str(dtype)[6:], channels_last=last, backend=name,
                       **dict(zip(('output', 'input', 'weight', 'bias'), errors)), verdict=verdict)


def check_passes(report: Report, args: Namespace, left: Callable[[], float]) -> None:
    """Times each pass of the Triton backend, and compares it with lower bounds, estimates and PyTorch's convolution."""
    device = args.device
    peaks, bandwidth = report.figures['peaks'], report.figures['bandwidth']
    stock = next(b for b in TABLE if b.name == 'native')
    triton = next(b for b in TABLE if b.name == 'triton')
    for shape, dtype, last in itertools.product(passes_of(args.quick), (*HALVES, torch.float32), (False, True)):
        n, c, h, w, kh, kw = shape
        maps, taps = (n, c, h, w), (c, 1, kh, kw)
        x, grad, weight = (torch.randn(s, device=device).to(dtype) for s in (maps, maps, taps))
        if last:
            x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
        problem = ConvProblem.of(x, weight)
        ok, reason = triton.can_run(problem)
        if not ok:
            report.say('', f'passes: not run, {reason}')
            return
        case = Case(n, c, h, w, kh, False, dtype)
        flops = 2 * problem.macs
        for step in ('forward', 'grad_input', 'grad_weight', 'gradients'):
            if left() < 0:
                return
            call = {'forward': lambda b: b.forward(x, weight, None, problem),
                    'grad_input': lambda b: b.grad_input(grad, weight, problem),
                    'grad_weight': lambda b: b.grad_weight(grad, x, problem),
                    'gradients': lambda b: b.gradients(grad, x, weight, problem)}[step]
            ours = milliseconds(lambda: call(triton), device)
            theirs = (milliseconds(lambda: call(stock), device, least=2, budget=0.02)
                      if not last and (dtype == torch.float16 or args.quick) else '')
            parts = 2 if step == 'gradients' else 1
            report.row(
                'passes', shape=shape, dtype=str(dtype)[6:], channels_last=last, step=step, ms=ours, native_ms=theirs,
                memory_floor_ms=1e3 * parts * case.bytes / bandwidth,
                tensor_core_floor_ms=1e3 * parts * flops * (kw + 15) / kw / peaks[str(dtype)[6:]],
                direct_tflops=parts * flops / ours / 1e9,
                estimate_over_measured=1e3 * triton.cost(step, problem) / ours)


class _Block(nn.Module):

    def __init__(self, channels: int, kernel: int, merged: bool):
        super().__init__()
        self.prelkb_bn = nn.BatchNorm2d(channels)
        self.pw1 = _conv(channels, channels, 1, relu=True)
        self.large_kernel = ReparamLargeKernel(channels, kernel, 5, nn.BatchNorm2d, merged)
        self.lk_nonlinear = nn.ReLU(inplace=True)
        self.pw2 = _conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw2(self.lk_nonlinear(self.large_kernel(self.pw1(self.prelkb_bn(x)))))


class _FFN(nn.Module):

    def __init__(self, channels: int):
        super().__init__()
        self.preffn_bn = nn.BatchNorm2d(channels)
        self.pw1 = _conv(channels, 4 * channels, 1)
        self.nonlinear = nn.GELU()
        self.pw2 = _conv(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw2(self.nonlinear(self.pw1(self.preffn_bn(x))))


class _Stage(nn.Module):

    def __init__(self, blocks: list):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = False) -> ConvNorm:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return ConvNorm(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True) if relu else None)


class RepLKNet(nn.Module):
    """:class:`mmlk.backbones.RepLKNet` without OpenMMLab, with the same keys and outputs.

    Args:
        kernels, layers: Of each stage.
        width: Channels of the first stage; each doubles those of the stage before.
        merged: Build the form of a single large convolution.
    """

    def __init__(self, kernels=(31, 29, 27, 13), layers=(2, 2, 18, 2), width: int = 128, merged: bool = False):
        super().__init__()
        channels = [width * 2**stage for stage in range(4)]
        self.stem = nn.ModuleList([
            _conv(3, width, 3, stride=2, relu=True), _conv(width, width, 3, groups=width, relu=True),
            _conv(width, width, 1, relu=True), _conv(width, width, 3, stride=2, groups=width, relu=True)])
        self.stages, self.transitions = nn.ModuleList(), nn.ModuleList()
        for i, c in enumerate(channels):
            if i:
                self.transitions.append(nn.Sequential(
                    _conv(channels[i - 1], c, 1, relu=True), _conv(c, c, 3, stride=2, groups=c, relu=True)))
            self.stages.append(_Stage([block for _ in range(layers[i]) for block in (
                _Block(c, kernels[i], merged), _FFN(c))]))

    def forward(self, x: Tensor) -> tuple:
        for layer in self.stem:
            x = layer(x)
        maps = []
        for i, stage in enumerate(self.stages):
            x = self.transitions[i - 1](x) if i else x
            for block in stage.blocks:
                x = block(x)
            maps.append(x)
        return tuple(maps)


def _with_stock(model: nn.Module) -> nn.Module:
    """Returns a copy of the model that uses PyTorch's own convolutions."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = nn.Conv2d
    return model


def check_models(report: Report, args: Namespace, left: Callable[[], float]) -> None:
    """Times RepLKNet-31B, merged and in training, against a copy with PyTorch's convolutions in both memory formats."""
    device = args.device
    small: Dict[str, Any] = dict(kernels=(9, 9, 9, 7), layers=(1, 1, 1, 1), width=8) if args.quick else {}
    sizes = [(2, 64)] if args.quick else [(1, 512), (16, 224)]
    for dtype, training, (batch, size) in itertools.product(
            (torch.float32, ) if args.quick else (*HALVES, torch.float32), (False, True), sizes):
        if training and batch == 1:
            batch, size = 4, 512
        torch.manual_seed(0)
        model = RepLKNet(merged=not training, **small).to(device).train(training)
        x = torch.randn(batch, 3, size, size, device=device)
        last = torch.channels_last
        named = {'ours': (model, x), 'ours, channels_last': (copy.deepcopy(model).to(memory_format=last),
                                                             x.contiguous(memory_format=last)),
                 'stock, channels_last': (_with_stock(model).to(memory_format=last), x.contiguous(memory_format=last)),
                 'stock': (_with_stock(model), x)}

        def step(model, x):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                if not training:
                    with torch.no_grad():
                        return model(x)
                model.zero_grad()
                loss = sum(out.float().square().mean() for out in model(x))
            loss.backward()
            return loss.detach()

        outs = {}
        for name, pair in named.items():
            if left() < 0:
                return
            outs[name] = step(*pair)
        calls = {name: lambda pair=pair: step(*pair) for name, pair in named.items()}
        for _ in range(0 if args.quick else 4):  # automatic choice measures at the third meeting with a problem
            calls['ours'](), calls['ours, channels_last']()
        samples = turns(calls, device, budget=max(0.2, min(2.0, left() / 12)), most=3 if args.quick else 15)
        times = {name: statistics.median(values) for name, values in samples.items()}
        verdict = ''
        if not training:
            error = max(relative_error(a, b.double()) for a, b in zip(outs['ours'], outs['stock']))
            limit = 1e-3 if dtype == torch.float32 else 0.1
            verdict = report.expect(error < limit, f'RepLKNet differs from stock by {error} in {dtype}')
            verdict += f' ({error:.1e})'
        report.row('models', what='training' if training else 'inference, merged', input=f'{batch}x3x{size}x{size}',
                   dtype=str(dtype)[6:], **{f'{name}, ms': 1e3 * seconds for name, seconds in times.items()},
                   against_stock=min(times['stock'], times['stock, channels_last']) / min(
                       times['ours'], times['ours, channels_last']), equals_stock=verdict)
        del model, named, calls, outs


def check_grid(report: Report, args: Namespace, left: Callable[[], float]) -> None:
    """Times the whole operator, forward and backward, for all backends and the automatic choice."""
    shapes = [(1, 1, 8, 9)] if args.quick else [(8, 128, 128, 31), (64, 384, 32, 31), (16, 384, 64, 31)]
    peaks = {getattr(torch, name): peak for name, peak in report.figures['peaks'].items()}
    rows = []
    for (n, c, size, k), dtype, backward in itertools.product(shapes, (*HALVES, torch.float32), (False, True)):
        if left() < 0:
            break
        row = measure(Case(n, c, size, size, k, backward, dtype), args.device, budget=0.01 if args.quick else 0.2)
        rows.append(row)
        report.figures.setdefault('grid', []).append({
            **row.case._asdict(), 'dtype': str(dtype)[6:], 'seconds': row.times, 'bytes': row.memory,
            'not_run': row.reasons, 'chosen': row.chosen})
        what = 'forward + backward' if backward else 'forward'
        report.say(('' if len(rows) > 1 else '\n') + f'grid: {row.case.label}, {str(dtype)[6:]}, {what}: '
                   f'{row.stock / row.times["chosen"]:.1f} times stock')
    if rows:
        report.say('', table(rows, peaks, report.figures['bandwidth']))


def check(args: Namespace) -> int:
    """Runs the parts one after the other, and prints and saves their results.

    Args:
        args: The options of ``mmlk gpu-check``, with ``device`` as a :class:`torch.device`.

    Returns:
        1 if a test or a comparison failed, else 0.
    """
    report = Report(args.out, args.seconds)
    report.figures.update(machine=describe(args.device), parts=list(args.parts))
    report.say(report.figures['machine'])
    if {'passes', 'grid'} & set(args.parts):
        report.figures['peaks'] = {str(dtype)[6:]: machine_peak(args.device, dtype) if not args.quick else 1e12
                                   for dtype in TOLERANCE}
        report.figures['bandwidth'] = machine_bandwidth(args.device) if not args.quick else 1e11
        report.say('Peak of a matrix product, TFLOP/s: ' + ', '.join(
            f'{name} {peak / 1e12:.0f}' for name, peak in report.figures['peaks'].items()) +
            f'; copying: {report.figures["bandwidth"] / 1e9:.0f} GB/s')
    parts = [part for part in SHARES if part in args.parts]
    for i, part in enumerate(parts):  # what one part leaves of its time goes to those after it
        remaining = report.ends - time.monotonic()
        share = SHARES[part] / sum(SHARES[later] for later in parts[i:])
        ends = time.monotonic() + remaining * share
        try:
            globals()[f'check_{part}'](report, args, lambda: ends - time.monotonic())
        except Exception as error:  # the other parts still have something to say
            report.expect(False, f'{part}: {error!r}')
            report.say('', f'{part}: ended by {error!r}')
        if args.device.type == 'cuda':
            torch.cuda.empty_cache()
    report.figures['finished'] = True
    report.say('', f'{len(report.failures)} failures in {time.monotonic() - report.began:.0f} s', *report.failures)
    return 1 if report.failures else 0
