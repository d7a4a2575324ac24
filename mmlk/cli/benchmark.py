"""Latency, throughput and peak memory of models, interleaved in one run; inference and a training step.

    mmlk benchmark configs/upernet_replknet31b_ade20k.py configs/upernet_swin-b_ade20k.py timm:convnext_base
    mmlk benchmark CONFIG... --part model --shape 1280x800 --variants fp32 merged merged+amp --device cuda
    mmlk benchmark CONFIG... --variants fp32 optimized onnxruntime openvino openvino+bf16 --device cpu
    mmlk benchmark CONFIG... --throughput --memory-limit 8GiB  # images per second at the best batch within 8 GiB

A source is a config or timm:NAME. Prints a table, and writes benchmark.json with every figure and benchmark.png: bars
of time, and accuracy against latency for configs whose result the model zoo knows. Beside each time stands how far the
outputs are from those of the network in fp32. With --throughput, batches of 1, 2, 4 and so on are tried for each
network, until they are not faster or need more memory than the limit; the result is throughput.json.
"""
import argparse
import functools
import json
import os.path as osp
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Mapping, Sequence, Tuple

from mmlk._paths import MIM
from mmlk._text import readable_bytes, parse_bytes
from mmlk._types import TIMM
from mmlk.cli.options import add_config_options, add_device, check_minimum, choose_device, conventions, fail

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from mmlk.analysis.latency import KnownResult, LatencyNetwork, LatencyRow, RuntimeBuilder, Variant
    from mmlk.analysis.throughput import ThroughputRow

PARTS, MODES = ('backbone', 'model'), ('inference', 'training')  # of mmlk.analysis.latency, which imports PyTorch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = conventions('mmlk.analysis.latency')
    parser.add_argument('sources', nargs='+', metavar='CONFIG', help='config of a segmentor or detector, or timm:NAME')
    parser.add_argument('--part', choices=PARTS, default='backbone', help='what is measured (%(default)s)')
    parser.add_argument('--shape', default='512x512', metavar='WIDTHxHEIGHT', help='of the image (%(default)s)')
    parser.add_argument('--batch', type=int, help='images of a call (1)')
    parser.add_argument('--throughput', action='store_true',
                        help='images per second at the batch that is best within --memory-limit, in place of latency')
    parser.add_argument('--memory-limit', metavar='SIZE',
                        help='with --throughput, of weights, images and a call together, such as 8GiB (default: the '
                        'memory of the GPU; on a CPU half of what is available)')
    parser.add_argument('--modes', nargs='+', choices=MODES,
                        help='(default: both; inference alone with optimized, onnxruntime or openvino)')
    parser.add_argument('--variants', nargs='+', default=['fp32', 'merged'], metavar='VARIANT',
                        help='fp32, merged, amp, compiled, or some joined by +, as merged+amp (default: fp32 merged). '
                        'Training knows no merged form. In inference also optimized, optimized+bf16, and on the CPU '
                        'onnxruntime, openvino, openvino+bf16 (pip install mmlk[runtimes])')
    parser.add_argument('--turns', type=int, default=10, help='how often each is timed (%(default)s)')
    parser.add_argument('--warmup', type=int, default=4, help='untimed calls before that, at least one (%(default)s)')
    add_device(parser)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'), metavar='DIR',
                        help='folder of the results (%(default)s)')
    add_config_options(parser)


def find_device(name: str) -> 'torch.device':
    """The device; ends the program with one message if this machine does not have it."""
    import torch
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    gpus = torch.cuda.device_count()
    if device is None or device.type not in ('cpu', 'cuda') or device.type == 'cuda' and (device.index or 0) >= gpus:
        fail(f'--device {name}: there is no such device here; cpu runs always, and torch finds {gpus} GPUs')
    return device


def find_networks(args: argparse.Namespace, size: Tuple[int, int]) -> List['LatencyNetwork']:
    """The networks to measure; ends the program with one message about the first that cannot be measured."""
    from mmlk.analysis import latency
    from mmlk.cli.prepare import read_config
    networks = []
    for source in args.sources:
        try:
            if not source.startswith(TIMM):
                name = osp.splitext(osp.basename(source))[0]
                networks.append(latency.latency_from_config(read_config(source, args.cfg_options), name, args.part))
            elif args.part == 'backbone':
                networks.append(latency.latency_from_timm(source[len(TIMM):], size))
            else:
                raise ValueError('--part model is of segmentors and detectors; a timm model is a backbone')
        except ValueError as error:
            fail(f'{source}: {error}')
    names = [network.name for network in networks]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        fail(f"two sources have the same name: {', '.join(sorted(twice))}")
    return networks


def build(networks: Sequence['LatencyNetwork'], sources: Sequence[str],
          device: 'torch.device') -> List['torch.nn.Module']:
    """A module for each network, on the device; ends the program with one message about the first that fails."""
    import torch
    modules = []
    for network, source in zip(networks, sources):
        torch.manual_seed(0)
        try:
            modules.append(network.build().to(device))
        except Exception as error:  # a foreign model's own
            fail(f'{source}: the model cannot be built: {type(error).__name__}: {error}')
    return modules


def measure(networks: Sequence['LatencyNetwork'], modules: Sequence['torch.nn.Module'], args: argparse.Namespace,
            variants: Sequence['Variant'], size: Tuple[int, int], device: 'torch.device',
            runtimes: Mapping[str, 'RuntimeBuilder']) -> List['LatencyRow']:
    """The rows of all modes. The progress bar is drawn between calls, never during one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mmlk.analysis import latency
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn('{task.description}')
    rows = []
    with Progress(*columns, auto_refresh=False, transient=True, disable=not sys.stdout.isatty()) as progress:
        for mode in MODES:
            if mode not in args.modes:
                continue
            task = progress.add_task(mode, total=None)

            def tick(text, total):
                progress.update(task, advance=1, total=total, description=text)
                progress.refresh()

            rows += latency.measure_latency(networks, modules, variants, mode, size, args.batch, device, args.turns,
                                            args.warmup, tick, runtimes)
            progress.remove_task(task)
    return rows


def measure_best_batches(networks: Sequence['LatencyNetwork'], modules: Sequence['torch.nn.Module'],
                         args: argparse.Namespace, variants: Sequence['Variant'], size: Tuple[int, int],
                         device: 'torch.device', runtimes: Mapping[str, 'RuntimeBuilder']) -> List['ThroughputRow']:
    """The rows of all modes. On a terminal, each batch is told before it is tried."""
    from mmlk.analysis.throughput import measure_throughput
    tick = functools.partial(print, flush=True) if sys.stdout.isatty() else lambda text: None
    return [row for mode in MODES if mode in args.modes
            for row in measure_throughput(networks, modules, variants, mode, size, device, args.memory_limit,
                                          args.turns, args.warmup, tick, runtimes)]


def installed(variants: Sequence['Variant']) -> Tuple[List['Variant'], Dict[str, str]]:
    """The variants whose packages are installed, and by name the runtimes that are not, with what is missing."""
    if not any(variant.runtime for variant in variants):
        return list(variants), {}
    from mmlk.deploy.runtimes import why_not
    reasons = {variant.runtime: why_not(variant.runtime) for variant in variants if variant.runtime}
    missing = {name: reason for name, reason in reasons.items() if reason}
    left = [variant for variant in variants if variant.runtime not in missing]
    if not left:
        fail(f"nothing is left to measure: {'; '.join(missing.values())}")
    return left, missing


def table(rows: Sequence['LatencyRow'], mode: str) -> 'Table':
    """A rich table of the rows of one mode."""
    from rich import box
    from rich.table import Table
    drawn = Table(title=mode, title_justify='left', box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column('network (variant)', overflow='fold', min_width=16)
    rows = [row for row in rows if row.mode == mode]
    compared = any(row.difference for row in rows)
    for name in ('median\nms', 'middle half\nms', 'images\n/ s', 'peak\nMiB', 'times\nfirst',
                 *(['difference\nlargest', 'of largest\nvalue'] if compared else [])):
        drawn.add_column(name, justify='right', no_wrap=True)
    first = next((row for row in rows if not row.failed), None)
    for row in rows:
        if row.failed:
            drawn.add_row(row.label, 'failed')
            continue
        low, high = (seconds * 1e3 for seconds in row.quartiles)
        memory = '' if row.memory is None else f'{row.memory / 2**20:.0f}'
        difference = [f'{value:.1e}' for value in row.difference or ()]
        drawn.add_row(row.label, f'{row.median * 1e3:.1f}', f'{low:.1f} to {high:.1f}', f'{row.throughput:.2f}',
                      memory, f'{row.relative_to(first):.2f}', *difference)
    return drawn


def throughput_table(rows: Sequence['ThroughputRow']) -> 'Table':
    """A rich table of throughput, of all modes."""
    from rich import box
    from rich.table import Table
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column('network (variant)', overflow='fold', min_width=16)
    for name in ('mode', 'resolution', 'type', 'batch', 'memory', 'images / s'):
        drawn.add_column(name, justify='right', no_wrap=True)
    for row in rows:
        found = [str(row.best.batch), readable_bytes(row.best.memory), f'{row.throughput:.4g}'] if row.best else [
            '', '', 'failed']
        drawn.add_row(row.label, row.mode, f'{row.size[1]}x{row.size[0]}', row.dtype, *found)
    return drawn


def finish_throughput(rows: Sequence['ThroughputRow'], args: argparse.Namespace, device: 'torch.device',
                      versions: Mapping[str, str]) -> None:
    """Prints the table, and why each search ended, and writes throughput.json."""
    import torch
    from rich.console import Console

    from mmlk.analysis import throughput
    from mmlk.ops.benchmark import describe
    if not any(row.best for row in rows):
        fail('nothing could be measured: ' + '; '.join(f'{row.label}: {row.ended}' for row in rows))
    report = dict(
        machine=describe(device), device=str(device), part=args.part, memory_limit_bytes=args.memory_limit,
        turns=args.turns, warmup=args.warmup, weights='random', threads=torch.get_num_threads(),
        runtimes=dict(versions), measured=conventions(throughput.__name__), rows=[row.to_dict() for row in rows])
    path = args.out / 'throughput.json'
    path.write_text(json.dumps(report, indent=1) + '\n')
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    console.print(f'{args.part}, best batch within {readable_bytes(args.memory_limit)}, random weights, '
                  f'{args.turns} turns\n{describe(device)}')
    console.print(throughput_table(rows))
    for row in rows:
        console.print(f'{row.label}, {row.mode}: no larger batch, because {row.ended}')
    console.print(f'Every batch that was tried: {path}')


def save(rows: Sequence['LatencyRow'], results: Mapping[str, 'KnownResult'], args: argparse.Namespace,
         size: Tuple[int, int], device: 'torch.device', title: str, versions: Mapping[str, str],
         missing: Mapping[str, str]) -> None:
    """Write benchmark.json and benchmark.png."""
    import torch

    from mmlk.analysis import latency
    from mmlk.ops.benchmark import describe
    report = dict(
        machine=describe(device), device=str(device), part=args.part, shape=dict(width=size[1], height=size[0]),
        batch=args.batch, turns=args.turns, warmup=args.warmup, weights='random', threads=torch.get_num_threads(),
        runtimes=dict(versions), not_installed=dict(missing),
        measured=conventions(latency.__name__),
        rows=[dict(row.to_dict(), result=results[row.name]._asdict() if row.name in results else None)
              for row in rows])
    if device.type == 'cuda':
        report['cuda'] = dict(cudnn_benchmark=torch.backends.cudnn.benchmark,
                              tf32_convolutions=torch.backends.cudnn.allow_tf32,
                              tf32_products=torch.backends.cuda.matmul.allow_tf32)
    (args.out / 'benchmark.json').write_text(json.dumps(report, indent=1) + '\n')
    latency.plot_latency(rows, results, title).savefig(args.out / 'benchmark.png', dpi=110)


def finish_latency(rows: Sequence['LatencyRow'], args: argparse.Namespace, size: Tuple[int, int],
                   device: 'torch.device', versions: Mapping[str, str], missing: Mapping[str, str]) -> None:
    """Prints the tables of latency, and writes benchmark.json and benchmark.png."""
    from rich.console import Console

    from mmlk.analysis import latency
    from mmlk.ops.benchmark import describe
    if all(row.failed for row in rows):
        fail('nothing could be measured: ' + '; '.join(f'{row.label}: {row.failed}' for row in rows))
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    title = (f'{args.part}, {args.batch} x {size[1]}x{size[0]} (width x height), random weights, '
             f'{args.turns} turns\n{describe(device)}'
             + ''.join(f', {name} {number}' for name, number in versions.items() if name != 'optimized'))
    console.print(title)
    for mode in dict.fromkeys(row.mode for row in rows):
        console.print(table(rows, mode))
    for row in rows:
        if row.failed:
            console.print(f'{row.label}, {row.mode}: {row.failed}')
    if any(latency.Variant.parse(row.variant).runtime for row in rows) and args.part == 'model':
        console.print("Inference ends where a file of the model ends: at a segmentor's logits, at the maps of a "
                      "detector's head or neck.")
    known = {name: latency.known_result(name, MIM) for name in dict.fromkeys(row.name for row in rows)}
    recompute = dict.fromkeys(row.name for row in rows if row.recomputes)
    if recompute:
        console.print(f"Recompute activations in training, as configured (with_cp): {', '.join(recompute)}.")
    save(rows, {name: result for name, result in known.items() if result}, args, size, device, title, versions, missing)
    console.print(f"Every figure: {args.out / 'benchmark.json'}; the picture: {args.out / 'benchmark.png'}")


def run(args: argparse.Namespace) -> None:
    if args.throughput and args.batch is not None:
        fail('--throughput looks for the best batch, so that --batch cannot be given')
    if args.memory_limit is not None and not args.throughput:
        fail('--memory-limit is of --throughput')
    args.batch = 1 if args.batch is None else args.batch
    check_minimum(args, batch=1, turns=1, warmup=0)
    import torch

    from mmlk.analysis import throughput
    from mmlk.analysis.complexity import parse_size
    from mmlk.analysis.latency import Variant
    try:
        size = parse_size(args.shape)
        variants = list(dict.fromkeys(Variant.parse(text) for text in args.variants))
        device = find_device(choose_device(args.device))
        only_infer = any(variant.runtime for variant in variants)
        args.modes = args.modes or (['inference'] if only_infer else MODES)
        check = throughput.check_variant if args.throughput else Variant.check
        for variant in variants:
            for mode in args.modes:
                check(variant, mode, device)
        if args.throughput:
            limit = args.memory_limit
            args.memory_limit = parse_bytes(limit) if limit else throughput.default_limit(device)
    except ValueError as error:
        fail(str(error))
    variants, missing = installed(variants)
    for reason in missing.values():
        print(reason)
    networks = find_networks(args, size)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True  # every call has the same shape
    modules = build(networks, args.sources, device)
    used = list(dict.fromkeys(variant.runtime for variant in variants if variant.runtime))
    versions, runtimes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        if used:
            from mmlk.deploy.runtimes import builders, version
            versions, runtimes = {name: version(name) for name in used}, builders(Path(folder))
        if args.throughput:
            best = measure_best_batches(networks, modules, args, variants, size, device, runtimes)
            finish_throughput(best, args, device, versions)
        else:
            rows = measure(networks, modules, args, variants, size, device, runtimes)
            finish_latency(rows, args, size, device, versions, missing)
