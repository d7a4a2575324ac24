"""The depthwise operator against PyTorch's own: time, rate and memory of every backend, and what they make of a model.

    mmlk benchmark-ops                    # every part: grid, growth, models, busy
    mmlk benchmark-ops --parts grid --out work_dirs/benchmark_ops
    mmlk benchmark-ops --device cuda      # fp16 and bf16, beside cuDNN's channels_first and channels_last

Prints Markdown tables, and saves them with a JSON of all figures and pictures of how the time grows, each part as soon
as it is measured.
"""
import argparse
import json
import time
from pathlib import Path
from typing import Any, Dict, List

from mmlk.cli.options import add_device, choose_device, fail

PARTS = ('grid', 'growth', 'models', 'busy')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS, help='what to measure (default: all)')
    add_device(parser)
    parser.add_argument('--budget', type=float, default=3.0, help='seconds for one figure, roughly (default: 3)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark_ops'), help='folder of the results')


def run(args: argparse.Namespace) -> None:
    import torch

    from mmlk.ops.benchmark import describe
    from mmlk.studies import operator
    device = torch.device(choose_device(args.device))
    if device.type not in ('cpu', 'cuda') or device.type == 'cuda' and not torch.cuda.is_available():
        fail(f'--device {args.device}: there is no such device here; cpu runs always, cuda where torch finds a GPU')
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    text: List[str] = []
    figures: Dict[str, Any] = {'machine': describe(device)}

    def keep(*lines: str) -> None:
        """Print and save, so that a run that is cut off leaves the parts that it finished."""
        print(*lines, sep='\n', flush=True)
        text.extend(lines)
        (args.out / 'tables.md').write_text('\n'.join(text) + '\n')
        (args.out / 'figures.json').write_text(json.dumps(figures, indent=1) + '\n')

    keep(figures['machine'])
    if 'grid' in args.parts:
        figures['grid'], lines = operator.run_grid(device, args.budget)
        keep('', lines)
    if 'growth' in args.parts:
        figures['growth'] = operator.run_growth(device, args.budget, args.out)
        keep()
    if 'models' in args.parts:
        figures['models'], lines = operator.run_models(device, args.budget)
        keep('', lines)
    if 'busy' in args.parts:
        figures['busy'], lines = operator.run_busy(device, args.budget)
        keep('', lines)
    print(f'\n{time.perf_counter() - started:.0f} s; tables.md, figures.json and pictures are in {args.out}')
