"""The model zoo: the records in ``configs/metafiles``, what the configs say, and the page ``docs/zoo.md`` made of both.

A record is the YAML file of a family, in OpenMMLab's metafile format, so that ``model-index.yml`` can import it. It has
``Collections``, the papers; ``Files``, weights that no config here trains (:mod:`mmlk.weights.catalog` reads them);
and ``Models``, one row a config. A row keeps three kinds of results apart, each a list of task, dataset, metrics and
source:

- ``Results``: published; ``Published`` gives the source and the published size and, if our config is not expected to
  reach them, why (``Missed``), ``Weights`` the file that has them, and ``File`` what that file is;
- ``Re-evaluated``: official weights, tested by this toolbox;
- ``Trained Here``: weights that this toolbox trained.

A person writes each fact once. What :data:`MEASURED` names in a row's ``Metadata`` comes from the config
(:func:`refresh` writes it), the title of a paper from its BibTeX entry (:func:`dump`).
"""
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import yaml
from mmengine.config import Config

from mmlk._text import markdown_table
from mmlk.analysis.complexity import build_on_meta, count
from mmlk.weights.catalog import IMAGENET, Entry, entries, read_records

Row = Dict[str, Any]

#: What a row says of its config; ``FLOPs`` are multiply-adds, ``Counted`` is :func:`stamp`.
MEASURED = ('Pretrained Weights', 'Epochs', 'Iterations', 'Batch Size', 'Parameters', 'FLOPs', 'Counted')
#: Kinds of results, and how the table calls them.
KINDS = {'Results': 'published', 'Re-evaluated': 'official weights, tested here', 'Trained Here': 'trained here'}
#: Tables of configs: title, training data, and how the configs' names begin. A row goes into the first that fits.
GROUPS = (
    ('ADE20K: mIoU, single / multi scale', 'ADE20K', ''),
    ('Cityscapes: mIoU, single / multi scale', 'Cityscapes', ''),
    ('Pascal VOC 2012: mIoU', 'Pascal VOC 2012', ''),
    ('COCO, Cascade Mask R-CNN: box / mask AP', 'COCO', 'cascade_mask_rcnn_'),
    ('COCO, Mask R-CNN: box / mask AP', 'COCO', 'mask_rcnn_'),
    ('COCO, Mask2Former: box / mask AP', 'COCO', 'mask2former_'),
    ('COCO, other detectors: box AP', 'COCO', ''),
    ('ImageNet-1K: top-1', 'ImageNet-1K', ''),
)
METRICS = ('mIoU', 'mIoU(ms+flip)', 'box AP', 'mask AP', 'Top 1 Accuracy')
EMPTY = '–'
PAGE = """# Model zoo

<!-- python tools/render_zoo.py writes this page from configs/metafiles; do not edit it. -->

Every figure on this page is one that its source published, unless the column says that it was measured here. Sources
are in [configs/metafiles](../configs/metafiles), one file a family.

## Configs

A config's name is the method, the backbone (with `-22k`, pretrained on ImageNet-22K) and the data set. Those of
ImageNet-1K, in `configs/pretrain`, are of classifiers ([Pretraining](pretraining.md)). A published
result links to the weights that have it. Sizes are parameters and multiply-adds of the whole model at the size of image
in brackets; what is counted here is the merged form.

{configs}

## Weights

`python tools/weights.py fetch NAME` downloads a file, and every place that takes a checkpoint takes the name. The
license is that of the file. Pixels say what the network takes: ImageNet's mean and standard deviation in RGB order,
unless it says otherwise.

{weights}

## Papers

{papers}
"""


class _Dumper(yaml.SafeDumper):
    """Lays a record out: lists of values and tables of numbers on one line, texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(list, lambda dumper, values: dumper.represent_sequence(
    'tag:yaml.org,2002:seq', values, flow_style=not any(isinstance(value, (dict, list)) for value in values)))
_Dumper.add_representer(dict, lambda dumper, values: dumper.represent_mapping(
    'tag:yaml.org,2002:map', values.items(),
    flow_style=bool(values) and all(isinstance(value, (int, float)) for value in values.values())))
_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    'tag:yaml.org,2002:str', text, style='|' if '\n' in text else None))


def read(root: Path) -> Dict[Path, dict]:
    """The records of a checkout, or of the folder ``.mim`` of an installation, by path."""
    return read_records(root / 'configs' / 'metafiles')


def dump(path: Path, record: dict) -> str:
    """The text of a record's file: laid out in one way, under the comment at its top, with the titles of its papers."""
    comment = []
    for line in path.read_text(encoding='utf-8').splitlines(keepends=True):
        if not line.startswith('#'):
            break
        comment.append(line)
    for collection in record.get('Collections') or []:
        if 'BibTeX' in collection:
            collection['Paper'] = {'Title': title(collection['BibTeX']), **{
                key: value for key, value in collection['Paper'].items() if key != 'Title'}}
    return ''.join(comment) + yaml.dump(record, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def title(bibtex: str) -> str:
    """The title in a BibTeX entry, without the braces that keep capitals.

    Raises:
        ValueError: The entry has no title on a line of its own.
    """
    found = re.search(r'^\s*title\s*=\s*\{(.*)\},?\s*$', bibtex, re.MULTILINE)
    if not found:
        raise ValueError(f'no line with a title in the BibTeX entry\n{bibtex}')
    return re.sub('[{}]', '', found[1])


def write(path: Path, record: dict) -> None:
    """Write a record as :func:`dump` lays it out."""
    path.write_text(dump(path, record), encoding='utf-8')


def rows(records: Dict[Path, dict]) -> List[Row]:
    """The rows of all records, in their order."""
    return [row for record in records.values() for row in record['Models']]


def image_size(row: Row) -> Tuple[int, int]:
    """Height and width at which a row is counted; the metafile says width x height, as the papers do."""
    width, height = map(int, row['Metadata']['Input Size'].split('x'))
    return height, width


def stamp(cfg: Config, row: Row) -> str:
    """A digest of all that a row's counts depend on, but for the code."""
    facts = cfg.model.to_dict(), cfg.get('default_scope'), row['Metadata']['Input Size']
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def schedule(cfg: Config) -> Dict[str, Any]:
    """What a row says of its config besides the counts."""
    facts = {}
    init_cfg = cfg.model.backbone.get('init_cfg')
    if init_cfg:
        facts['Pretrained Weights'] = init_cfg.checkpoint
    if 'max_epochs' in cfg.train_cfg:
        facts['Epochs'] = cfg.train_cfg.max_epochs
    else:
        facts['Iterations'] = cfg.train_cfg.max_iters
    facts['Batch Size'] = cfg.auto_scale_lr.base_batch_size
    return facts


def is_fresh(cfg: Config, row: Row) -> bool:
    """Whether a row says what its config says, and was counted on it."""
    said = {key: value for key, value in row['Metadata'].items() if key in MEASURED}
    counts = {key: said.get(key) for key in ('Parameters', 'FLOPs')}
    return None not in counts.values() and said == {**schedule(cfg), **counts, 'Counted': stamp(cfg, row)}


def refresh(cfg: Config, row: Row) -> None:
    """Write into a row what its config says, and count the model, merged."""
    counted = count(build_on_meta(cfg), image_size(row))
    metadata = {key: value for key, value in row['Metadata'].items() if key not in MEASURED}
    metadata.update(schedule(cfg), Parameters=counted.parameters, FLOPs=counted.macs, Counted=stamp(cfg, row))
    row['Metadata'] = metadata


def published_size(row: Row) -> Iterator[Tuple[str, float, float]]:
    """For each of parameters and multiply-adds that were published: its name, the figure, and ours in its unit."""
    for name, unit in (('Parameters', 'M'), ('FLOPs', 'G')):
        figure = row.get('Published', {}).get(f'{name} ({unit})')
        if figure is not None:
            yield name, figure, row['Metadata'][name] / {'M': 1e6, 'G': 1e9}[unit]


def agrees(figure: float, ours: float) -> bool:
    """Whether a published figure is ours within 1 %, or rounded to as many digits."""
    return abs(ours - figure) <= max(0.01 * figure, 0.5 if isinstance(figure, int) else 0.05)


def render(records: Dict[Path, dict]) -> str:
    """The page ``docs/zoo.md``, in Markdown."""
    return PAGE.format(configs=_configs(records), weights=_weights(records), papers=_papers(records))


def _configs(records: Dict[Path, dict]) -> str:
    left: List[Row] = rows(records)
    lines: List[str] = []
    for heading, data, prefix in GROUPS:
        group = [row for row in left if row['Metadata']['Training Data'] == data and row['Name'].startswith(prefix)]
        left = [row for row in left if row not in group]
        if group:
            kinds = [kind for kind in KINDS if kind == 'Results' or any(kind in row for row in group)]
            header = ['config', 'pretraining', *(KINDS[kind] for kind in kinds), 'published size', 'counted here']
            lines += ['', f'### {heading}', '', *_table(header, [_cells(row, kinds) for row in group])]
    if left:
        raise ValueError(f"no part of the table takes {', '.join(row['Name'] for row in left)}")
    notes: Dict[Tuple[str, str], List[str]] = {}
    for row in rows(records):
        reasons = row.get('Published', {}).get('Differs', {})
        for reason in dict.fromkeys(reasons.values()):
            figures = ' and '.join(figure for figure in reasons if reasons[figure] == reason)
            notes.setdefault((figures, reason), []).append(f"`{row['Name']}`")
    missed = {row['Name']: row['Published']['Missed'] for row in rows(records)
              if 'Missed' in row.get('Published', {})}
    if missed:
        lines += ['', 'Published results that a config is not expected to reach:', '']
        lines += [f'- `{name}`: {reason}.' for name, reason in missed.items()]
    if notes:
        lines += ['', 'Published sizes that are more than 1 % from what is counted here:', '']
        lines += [f"- {figures} of {', '.join(names)}: {reason}." for (figures, reason), names in notes.items()]
    return '\n'.join(lines).strip('\n')


def _weights(records: Dict[Path, dict]) -> str:
    lines: List[str] = []
    for record in records.values():
        for family, files in entries(record).items():
            header = ['name', 'arch', 'holds', 'pretraining', 'images', 'pixels', 'published', 'license', 'sha256']
            lines += ['', f'### {family}', '', *_table(header, [_file_cells(entry) for entry in files])]
    return '\n'.join(lines).strip('\n')


def _papers(records: Dict[Path, dict]) -> str:
    collections = [collection for record in records.values() for collection in record.get('Collections') or []]
    return '\n'.join(_table(['family', 'paper', 'official code', 'its license'], [
        [collection['Name'], f"[{collection['Paper']['Title']}]({collection['Paper']['URL']})",
         f"[{collection['Code'].partition('://')[2]}]({collection['Code']})" if 'Code' in collection else EMPTY,
         collection['License']] for collection in collections]))


def _table(header: List[str], cells: List[List[str]]) -> List[str]:
    return markdown_table(header, cells).splitlines()


def _file_cells(entry: Entry) -> List[str]:
    pixels = 'ImageNet'
    if (entry.mean, entry.std) != IMAGENET:
        mean, std = ('/'.join(f'{value:g}' for value in dict.fromkeys(values)) for values in (entry.mean, entry.std))
        pixels = f'mean {mean}, std {std}'
    if entry.channels != 'RGB':
        pixels += f', {entry.channels}'
    url = entry.url.replace(')', '%29')
    published = ', '.join(filter(None, (entry.figures, entry.remark)))
    return [f'[{entry.name}]({url})', entry.arch, entry.holds, entry.pretraining, entry.image_size, pixels,
            published or EMPTY, entry.licence, entry.sha256 or EMPTY]


def _cells(row: Row, kinds: List[str]) -> List[str]:
    metadata, published = row['Metadata'], row.get('Published', {})
    size = [f'{published[key]:g}{key[-2]}' for key in ('Parameters (M)', 'FLOPs (G)') if key in published]
    counted = EMPTY
    if 'Parameters' in metadata:
        billions = metadata['FLOPs'] / 1e9
        counted = (f"{metadata['Parameters'] / 1e6:.1f}M / {billions:.{int(billions < 20)}f}G "
                   f"({metadata['Input Size']})")
    results = {kind: _results(row.get(kind)) for kind in kinds}
    if 'Weights' in row:
        results['Results'] = f"[{results['Results']}]({row['Weights']})"
    return [f"[{row['Name']}](../{row['Config']})", metadata['Pretraining'], *results.values(),
            ' / '.join(size) or EMPTY, counted]


def _results(results: List[dict]) -> str:
    metrics = {name: value for result in results or [] for name, value in result['Metrics'].items()}
    return ' / '.join(str(metrics[name]) for name in METRICS if name in metrics) or EMPTY
