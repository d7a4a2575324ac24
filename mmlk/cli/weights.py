"""Pretrained and trained weights: what there is, get it, look into a file, pass it on.

    mmlk weights list [WORD ...]
    mmlk weights fetch replknet-31b_in1k
    mmlk weights inspect FILE
    mmlk weights save CHECKPOINT OUT.safetensors
    mmlk weights push OUT.safetensors OWNER/NAME
"""
import argparse
import reprlib
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Dict, Mapping, Sequence

from mmlk._text import one_line, printable

if TYPE_CHECKING:
    from mmlk.weights.catalog import Triple


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest='command', required=True)
    listed = commands.add_parser('list', help='the catalogue')
    listed.add_argument('words', metavar='WORD', nargs='*', help='only names and families with all of these')
    fetch = commands.add_parser('fetch', help='download, or find in the cache, and print the path')
    fetch.add_argument('source', metavar='NAME', help='a name of the catalogue, a URL, or hf-hub:owner/name/file')
    look = commands.add_parser('inspect', help='what a file holds; runs nothing in it')
    look.add_argument('source', metavar='FILE', help='a path, a name of the catalogue, a URL, or '
                      'hf-hub:owner/name/file')
    save = commands.add_parser('save', help='write a checkpoint as a safetensors file that says what it is')
    save.add_argument('checkpoint', metavar='CHECKPOINT', help='of a training, or a backbone: a path, a name of the '
                      'catalogue, a URL, or hf-hub:owner/name/file')
    save.add_argument('out', metavar='OUT.safetensors', help='the file to write; one that is there is replaced')
    part = save.add_mutually_exclusive_group()
    part.add_argument('--backbone', action='store_true', help='of a whole model, only its backbone')
    part.add_argument('--official', action='store_true', help='of a pretrained classifier, the names of the official '
                      'files, which the official code and, for ConvNeXt, timm read')
    save.add_argument('--licence', default='', metavar='TEXT', help='of the weights, if no record has it, such as MIT')
    save.add_argument('--source', default='', metavar='TEXT', help='where they come from, if no record has it')
    push = commands.add_parser('push', help='prepare a folder with a model card for the Hugging Face Hub; uploads only '
                               'with --upload')
    push.add_argument('weights', metavar='FILE.safetensors', help='what mmlk weights save has written')
    push.add_argument('repo', metavar='OWNER/NAME', help='repository on the Hub')
    push.add_argument('--upload', action='store_true', help='upload the folder; without it nothing leaves this machine')
    push.add_argument('--out', default='', metavar='FOLDER', help='the folder (work_dirs/hub/OWNER/NAME)')
    push.add_argument('--record', default='', metavar='NAME', help='a config, or a name that mmlk weights lists, whose '
                      "published figures the card shows as published; by default the one in the file's metadata")
    push.add_argument('--licence', default='', metavar='TEXT', help='of the weights, if the file does not have it')
    push.add_argument('--measured', nargs='+', default=[], metavar='METRIC=VALUE', help='figures that you '
                      "measured with this file, in percent, such as mIoU=49.9 or 'box AP=51.2'")
    push.add_argument('--dataset', default='', metavar='NAME', help='on which they were measured; by default that '
                      'of the record')
    push.add_argument('--new-card', action='store_true', help='replace a card that is in the folder, which is kept '
                      'otherwise')
    push.add_argument('--private', action='store_true', help='a repository that is made anew is private')


def _pixels(triple: 'Triple') -> str:
    return '/'.join(f'{value:g}' for value in dict.fromkeys(triple))


def show_catalog(words: Sequence[str]) -> None:
    """Print the entries of the catalogue by family: those whose name or whose family's name has every word in it."""
    from rich.console import Console
    from rich.table import Table

    from mmlk.weights.catalog import FAMILIES
    from mmlk.weights.fetch import cache_dir, cache_path
    # a pipe or a file has no width of its own to keep to
    console = Console(width=None if sys.stdout.isatty() else 260)
    for family, entries in FAMILIES.items():
        shown = [entry for entry in entries
                 if all(word.lower() in f'{family} {entry.name}'.lower() for word in words)]
        if not shown:
            continue
        table = Table(box=None, title=f'\n{family}', title_justify='left', title_style='bold')
        table.add_column('name', no_wrap=True)
        for title in ('arch', 'holds', 'pretraining', 'size', 'mean', 'std', 'licence', 'sha256', 'here', 'note'):
            table.add_column(title)
        for entry in shown:
            table.add_row(entry.name, entry.arch, entry.holds, entry.pretraining, entry.image_size,
                          _pixels(entry.mean), _pixels(entry.std), entry.licence, entry.sha256 or 'not known',
                          'yes' if cache_path(entry).exists() else '', entry.note)
        console.print(table)
    print(f'\nFiles are kept in {cache_dir()}; MMLK_HOME sets another place. URLs and sources: configs/metafiles')


def _brief(value: Any) -> str:
    """At most a line of any value; lists of lists may stand in a file for more than any memory holds."""
    from mmlk.weights.read import StandIn
    if isinstance(value, StandIn):
        value = value.state
    if isinstance(value, Mapping):
        known = [f'{k}={v}' for k, v in value.items() if isinstance(k, str) and len(k) < 40 and
                 (isinstance(v, (int, float, bool)) or (isinstance(v, str) and len(v) < 40))]
        return f'{len(value)} entries: {", ".join(known[:8])}'.rstrip(': ')
    return reprlib.repr(value)


def inspect(source: str) -> None:
    """Print what a file of weights holds. Nothing in the file is run."""
    from mmlk.weights.fetch import find
    from mmlk.weights.identify import identify
    from mmlk.weights.layouts import find_tensors, fit
    from mmlk.weights.read import read_metadata, read_weights
    from mmlk.weights.saving import shortened
    path = find(source)
    payload = read_weights(path)
    layout = find_tensors(payload, path)
    tensors = layout.tensors
    names = list(tensors)
    kinds = Counter(str(value.dtype).replace('torch.', '') for value in tensors.values())
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    parameters = sum(value.numel() for name, value in tensors.items() if not name.endswith(buffers))
    native = fit(layout)
    lines = [f'{path}: {path.stat().st_size:,} bytes',
             f'format      {native.format}',
             f'looks like  {identify(native.tensors) or "no family known here"}',
             f'tensors     {len(tensors)} ({", ".join(f"{count} {kind}" for kind, count in kinds.items())})',
             f'parameters  {parameters:,}, running statistics not counted',
             f'first keys  {", ".join(names[:3])}',
             f'last keys   {", ".join(names[-3:])}',
             *(f'{key:<11} {_brief(payload[key])}' for key in payload
               if key in ('meta', 'args', 'epoch', 'iter', 'config', 'cfg')),
             *(f'{key:<11} {shortened(value)}' for key, value in (read_metadata(path) or {}).items())]
    print('\n'.join(map(one_line, lines)))


def read_figures(texts: Sequence[str]) -> Dict[str, float]:
    """The figures in ``METRIC=VALUE``; ends the program when one is not of that form."""
    figures = {}
    for text in texts:
        name, _, value = text.partition('=')
        try:
            figures[name.strip()] = float(value)
        except ValueError:
            sys.exit(f'--measured takes METRIC=VALUE, got {printable(text)}')
    return figures


def push(args: argparse.Namespace) -> None:
    """Prepare a folder for the Hub, print what is in it, and upload it if asked."""
    from mmlk.weights.card import prepare_upload, upload
    prepared = prepare_upload(args.weights, args.repo, args.out, args.record, args.licence, read_figures(args.measured),
                              args.dataset, args.new_card, args.private)
    print(prepared)
    if args.upload:
        print(f'uploaded: {printable(upload(prepared))}')
    else:
        print('nothing was uploaded; --upload does')


def run(args: argparse.Namespace) -> None:
    from mmlk.weights import WeightsError
    from mmlk.weights.fetch import find
    try:
        if args.command == 'list':
            show_catalog(args.words)
        elif args.command == 'fetch':
            print(find(args.source))
        elif args.command == 'save':
            from mmlk.weights import save
            print(save(args.checkpoint, args.out, args.backbone, args.licence, args.source, args.official))
        elif args.command == 'push':
            push(args)
        else:
            inspect(args.source)
    except WeightsError as error:
        sys.exit(str(error))
