"""The model zoo: metafiles in OpenMMLab's model-index format, what the configs say, and the README's table.

``model-index.yml`` imports one metafile a family, ``configs/metafiles/*.yml``, with one row (an entry of ``Models``) a
config. A row keeps three kinds of results apart, each a list of task, dataset, metrics and source:

- ``Results``: published; ``Published`` gives the source and the published size and, if our config is not expected to
  reach them, why (``Missed``), ``Weights`` the file that has them;
- ``Re-evaluated``: official weights, tested by this toolbox;
- ``Trained Here``: weights that this toolbox trained.

In a row's ``Metadata``, what :data:`MEASURED` names comes from the config: :func:`refresh` writes it.
"""
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import yaml
from mmengine.config import Config

from mmlk.analysis.complexity import build_on_meta, count

Row = Dict[str, Any]

#: What a row says of its config; ``FLOPs`` are multiply-adds, ``Counted`` is :func:`stamp`.
MEASURED = ('Pretrained Weights', 'Epochs', 'Iterations', 'Batch Size', 'Parameters', 'FLOPs', 'Counted')
#: Kinds of results, and how the table calls them.
KINDS = {'Results': 'published', 'Re-evaluated': 'official weights, tested here', 'Trained Here': 'trained here'}
#: Parts of the table: title, training data, and how the configs' names begin. A row goes into the first that fits.
GROUPS = (
    ('ADE20K: mIoU, single / multi scale', 'ADE20K', ''),
    ('Cityscapes: mIoU, single / multi scale', 'Cityscapes', ''),
    ('Pascal VOC 2012: mIoU', 'Pascal VOC 2012', ''),
    ('COCO, Cascade Mask R-CNN: box / mask AP', 'COCO', 'cascade_mask_rcnn_'),
    ('COCO, Mask R-CNN: box / mask AP', 'COCO', 'mask_rcnn_'),
    ('COCO, other detectors: box AP', 'COCO', ''),
)
METRICS = ('mIoU', 'mIoU(ms+flip)', 'box AP', 'mask AP')
BEGIN, END = '<!-- python tools/render_zoo.py writes this table -->', '<!-- end of the table -->'
EMPTY = '–'


def read(root: Path) -> Dict[Path, dict]:
    """The metafiles that ``root/model-index.yml`` imports, by path."""
    index = yaml.safe_load((root / 'model-index.yml').read_text())
    return {root / name: yaml.safe_load((root / name).read_text()) for name in index['Import']}


def write(path: Path, metafile: dict) -> None:
    """Write a metafile, in one way of laying it out, and keep the comment at its top."""
    comment = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.startswith('#'):
            break
        comment.append(line)
    path.write_text(''.join(comment) + yaml.safe_dump(metafile, sort_keys=False, allow_unicode=True, width=110))


def rows(metafiles: Dict[Path, dict]) -> List[Row]:
    """The rows of all metafiles, in their order."""
    return [row for metafile in metafiles.values() for row in metafile['Models']]


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


def render(metafiles: Dict[Path, dict]) -> str:
    """The README's table, in Markdown."""
    left, lines = rows(metafiles), []
    for title, data, prefix in GROUPS:
        group = [row for row in left if row['Metadata']['Training Data'] == data and row['Name'].startswith(prefix)]
        left = [row for row in left if row not in group]
        if group:
            header = ['config', 'pretraining', *KINDS.values(), 'published size', 'counted here']
            lines += ['', f'**{title}**', '', _line(header), '|---' * len(header) + '|']
            lines += [_line(_cells(row)) for row in group]
    if left:
        raise ValueError(f"no part of the table takes {', '.join(row['Name'] for row in left)}")
    notes: Dict[Tuple[str, str], List[str]] = {}
    for row in rows(metafiles):
        reasons = row.get('Published', {}).get('Differs', {})
        for reason in dict.fromkeys(reasons.values()):
            figures = ' and '.join(figure for figure in reasons if reasons[figure] == reason)
            notes.setdefault((figures, reason), []).append(f"`{row['Name']}`")
    missed = {row['Name']: row['Published']['Missed'] for row in rows(metafiles)
              if 'Missed' in row.get('Published', {})}
    if missed:
        lines += ['', 'Published results that a config is not expected to reach:', '']
        lines += [f'- `{name}`: {reason}.' for name, reason in missed.items()]
    if notes:
        lines += ['', 'Published sizes that are more than 1 % from what is counted here:', '']
        lines += [f"- {figures} of {', '.join(names)}: {reason}." for (figures, reason), names in notes.items()]
    return '\n'.join(lines).strip('\n')


def insert(readme: str, table: str) -> str:
    """The README's text with the table between its two markers.

    Raises:
        ValueError: The README does not have each marker once, in order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f'the README needs the lines\n{BEGIN}\n{END}\nonce each, and the table goes between them')
    return f'{readme[:readme.index(BEGIN)]}{BEGIN}\n\n{table}\n\n{readme[readme.index(END):]}'


def _line(cells: List[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row) -> List[str]:
    metadata, published = row['Metadata'], row.get('Published', {})
    size = [f'{published[key]:g}{key[-2]}' for key in ('Parameters (M)', 'FLOPs (G)') if key in published]
    counted = EMPTY
    if 'Parameters' in metadata:
        counted = f"{metadata['Parameters'] / 1e6:.1f}M / {metadata['FLOPs'] / 1e9:.0f}G ({metadata['Input Size']})"
    results = {kind: _results(row.get(kind)) for kind in KINDS}
    if 'Weights' in row:
        results['Results'] = f"[{results['Results']}]({row['Weights']})"
    return [f"[{row['Name']}]({row['Config']})", metadata['Pretraining'], *results.values(), ' / '.join(size) or EMPTY,
            counted]


def _results(results: List[dict]) -> str:
    metrics = {name: value for result in results or [] for name, value in result['Metrics'].items()}
    return ' / '.join(str(metrics[name]) for name in METRICS if name in metrics) or EMPTY
