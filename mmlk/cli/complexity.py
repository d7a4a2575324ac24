"""Parameters and FLOPs of a config's model, module by module, in training and in merged form.

    mmlk complexity configs/upernet_replknet31b_ade20k.py --shape 2048x512
    mmlk complexity CONFIG --shape 1280x800 --depth 4 --out work_dirs/complexity.json

The shape is WIDTHxHEIGHT, as in the papers' tables. Nothing is computed but shapes: no weights, no GPU, little memory.
"""
import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Optional, Tuple

from mmlk._paths import MIM
from mmlk.cli.options import add_config_options, check_minimum, conventions, fail

if TYPE_CHECKING:
    from mmengine.config import Config
    from rich.table import Table

    from mmlk.analysis.complexity import Node


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = conventions('mmlk.analysis.complexity')
    parser.add_argument('config', help='config of a segmentor or a detector')
    parser.add_argument('--shape', required=True, metavar='WIDTHxHEIGHT', help='of the image, in pixels: 2048x512')
    parser.add_argument('--depth', type=int, default=2, help='levels of modules below the model (%(default)s)')
    parser.add_argument('--out', type=Path, metavar='FILE', help='write all levels to this .json file')
    add_config_options(parser)


def measure(cfg: 'Config', size: Tuple[int, int]) -> Dict[str, 'Node']:
    """The tree of counts of the form that trains and, where there are branches to merge, of the merged form.

    Args:
        cfg: Of a segmentor or a detector.
        size: Height and width of the image in pixels.
    """
    from mmlk.analysis import complexity
    from mmlk.engine.network import in_channels
    from mmlk.reparam import MergeableBranches
    forms = {}
    for form in ('training', 'merged'):
        try:
            model = complexity.build_on_meta(cfg, merged=form == 'merged')
        except Exception as error:  # a foreign model's own
            fail(f'the model cannot be built: {type(error).__name__}: {error}')
        try:
            forms[form] = complexity.breakdown(model, size, in_channels(cfg))
        except NotImplementedError as error:
            fail(f'the model cannot be counted: {error}')
        if not any(isinstance(module, MergeableBranches) for module in model.modules()):
            break
    return forms


def published(path: str, shape: str) -> Optional[str]:
    """The figures that were published for a config at this shape, as text; None where the model zoo has none."""
    from mmlk.analysis import zoo
    for row in zoo.rows(zoo.read(MIM)):
        if row['Name'] == Path(path).stem and row['Metadata']['Input Size'] == shape:
            figures = row.get('Published', {})
            sizes = [f'{figures[key]}{key[-2]}' for key in ('Parameters (M)', 'FLOPs (G)') if key in figures]
            return f"{' / '.join(sizes)} ({figures['Source']})" if sizes else None
    return None


def table(forms: Dict[str, 'Node'], title: str, depth: int) -> 'Table':
    """A rich table with a line for each module that has parameters or multiply-adds, indented by its level."""
    from rich import box
    from rich.table import Table

    from mmlk.analysis import complexity
    both, macs = len(forms) == 2, forms['training'].macs
    drawn = Table(title=title, title_justify='left', box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column('module', overflow='fold', min_width=16)
    for quantity in ('params\n(M)', 'mult-adds\n(G)'):
        for form in ('training', 'merged') if both else ('', ):
            drawn.add_column(f'{quantity}\n{form}', justify='right', no_wrap=True)
    drawn.add_column('share', justify='right', no_wrap=True)
    for line in complexity.compare_forms(forms['training'], forms.get('merged', forms['training']), depth):
        nodes = (line.training, line.merged) if both else (line.training, )
        if line.level and not any(node and (node.parameters or node.macs) for node in nodes):
            continue
        cells = [f'{node.parameters / 1e6:.3f}' if node else '' for node in nodes]
        cells += [f'{node.macs / 1e9:.3f}' if node else '' for node in nodes]
        share = f'{100 * line.training.macs / macs:.1f} %' if line.training and macs else ''
        drawn.add_row('  ' * line.level + (line.name or 'whole model'), *cells, share,
                      style='bold' if line.level == 0 else None)
    return drawn


def run(args: argparse.Namespace) -> None:
    check_minimum(args, depth=0)
    from rich.console import Console

    from mmlk.analysis import complexity
    from mmlk.cli.prepare import read_config
    from mmlk.engine.network import check_backbone
    try:
        size = complexity.parse_size(args.shape)
    except ValueError as error:
        fail(f'--shape: {error}')
    cfg = read_config(args.config, args.cfg_options)
    try:
        check_backbone(cfg)
    except ValueError as error:
        fail(f'{args.config}: {error}')
    forms = measure(cfg, size)
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    console.print(table(forms, f'{args.config}, one image, {size[1]} wide and {size[0]} high', args.depth))
    if len(forms) == 1:
        console.print('There are no parallel branches to merge.')
    console.print('FLOPs are multiply-adds of convolutions, matrix products and Fourier transforms; no auxiliary head: '
                  '--help has the conventions.')
    idle = list(forms['training'].idle())
    if idle:
        console.print(f"Not run, and their multiply-adds not counted: {', '.join(idle)}.")
    known = published(args.config, args.shape)
    if known:
        console.print(f'Published: {known}.')
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        report = dict(config=args.config, shape=dict(width=size[1], height=size[0]),
                      conventions=conventions(complexity.__name__), published=known, not_run=idle,
                      **{form: tree.to_dict() for form, tree in forms.items()})
        args.out.write_text(json.dumps(report, indent=1) + '\n')
        console.print(f'Every level: {args.out}')
