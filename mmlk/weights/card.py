"""A folder for the Hugging Face Hub: a safetensors file, and a model card of what is known of it.

A card has two kinds of figures, which it keeps apart: those that were measured with the file, which its author gives,
and those that the family's record has, which were published and are shown with their source.
"""
import json
import math
import re
import shutil
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Tuple

import yaml

from mmlk._text import one_line

from . import catalog
from .catalog import read_records
from .errors import WeightsError
from .hub import INSTALL, check_repo, first_line
from .read import read_metadata, read_weights
from .saving import is_stated, replacing, shortened

CARD = 'README.md'
#: Metrics of the records: task, and the Hub's names of task and metric.
METRICS = {
    'Top 1 Accuracy': ('Image Classification', 'image-classification', 'accuracy'),
    'mIoU': ('Semantic Segmentation', 'image-segmentation', 'mean_iou'),
    'mIoU(ms+flip)': ('Semantic Segmentation', 'image-segmentation', 'mean_iou'),
    'box AP': ('Object Detection', 'object-detection', 'box_ap'),
    'mask AP': ('Instance Segmentation', 'image-segmentation', 'mask_ap'),
}
# Licences that the Hub has a name for, which is that of SPDX in small letters.
_LICENCES = ('mit', 'apache-2.0', 'bsd-2-clause', 'bsd-3-clause', 'cc-by-4.0', 'cc-by-sa-4.0', 'cc-by-nc-4.0',
             'cc-by-nc-sa-4.0', 'cc0-1.0', 'gpl-3.0', 'agpl-3.0', 'lgpl-3.0')


class Figure(NamedTuple):
    """A metric on a dataset.

    Args:
        metric: A key of ``METRICS``.
        value: In percent.
        dataset: Name of the dataset.
        source: Who published it; empty if it was measured with the file.
        url: Address of the source.
    """
    metric: str
    value: float
    dataset: str
    source: str = ''
    url: str = ''


@dataclass(frozen=True)
class PreparedUpload:
    """A folder whose two files :func:`upload` uploads.

    Attributes:
        repo: ``owner/name`` on the Hub.
        folder: The folder.
        file: Name of the weights in it.
        size: Size of the weights in bytes.
        kept: Whether the folder had a card, which was kept.
        private: Whether a new repository is private.
    """
    repo: str
    folder: Path
    file: str
    size: int
    kept: bool
    private: bool

    def __str__(self) -> str:
        card = 'the card that was there; --new-card writes a new one' if self.kept else 'read it, and edit it'
        kind = 'private' if self.private else 'public'
        return one_line(f'for https://huggingface.co/{self.repo} ({kind}, if it is new)') + '\n' + '\n'.join(
            map(one_line, [f'  {self.folder / self.file}: {self.size:,} bytes', f'  {self.folder / CARD}: {card}']))


@dataclass
class _Record:
    """What the records say of weights: the collection of the family, the row, and its figures."""
    collection: Mapping[str, Any] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)
    figures: List[Figure] = field(default_factory=list)


def _records() -> Iterator[Tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yields (collection, row) of every file and every config of the records."""
    for record in read_records(catalog.RECORDS).values():
        collections = {collection['Name']: collection for collection in record.get('Collections') or []}
        for row in [*(record.get('Files') or []), *record['Models']]:
            yield collections.get(row['In Collection'], {}), row


def _find_record(name: str, arch: str) -> _Record:
    """Returns the record of a name; without one, the collection of the family that ``arch`` begins with.

    Raises:
        WeightsError: No record has the name.
    """
    if not name:
        family = arch.removeprefix('mmlk.')
        for collection, _ in _records():
            known = [str(backbone).removeprefix('mmlk.') for backbone in collection.get('Backbones') or []]
            if any(re.match(rf'{re.escape(backbone)}\b', family) for backbone in known):
                return _Record(collection)
        return _Record()
    for collection, row in _records():
        if row['Name'] == name:
            source = row.get('Source') or row.get('Published', {}).get('Source') or ''
            url = collection.get('Paper', {}).get('URL', '')
            if source.startswith('github.com/'):
                url = f"https://{'/'.join(source.split()[0].split('/')[:3])}"
            figures = [Figure(metric, value, 'ImageNet-1K', source, url)
                       for metric, value in row.get('Metrics', {}).items()]
            figures += [Figure(metric, value, result['Dataset'], source, url)
                        for result in row.get('Results', []) for metric, value in result['Metrics'].items()]
            return _Record(collection, row, [figure for figure in figures if figure.metric in METRICS])
    raise WeightsError(f'no record in configs/metafiles has {name!r}: give the name of a config, or one of '
                       '`mmlk weights list`')


def _measured(given: Mapping[str, float], dataset: str) -> List[Figure]:
    for name, value in given.items():
        if name not in METRICS:
            raise WeightsError(f'the metric {name!r} is not known; there are {", ".join(METRICS)}')
        if not (isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= 100):
            raise WeightsError(f'{name} is in percent, got {value}')
    if given and not dataset:
        raise WeightsError('measured figures need the name of their dataset')
    return [Figure(name, float(value), dataset) for name, value in given.items()]


def _slug(text: str) -> str:
    return re.sub(r'[^a-z0-9.]+', '-', text.lower()).strip('-')


def _front_matter(name: str, licence: str, record: _Record, figures: List[Figure], datasets: List[str]) -> str:
    known = licence.lower() in _LICENCES
    data: Dict[str, Any] = {'license': licence.lower() if known else 'other'}
    if not known:
        data['license_name'] = _slug(licence)
    data['library_name'] = 'mmlk'
    data['tags'] = list(dict.fromkeys(filter(None, [
        'mmlk', 'large-kernel', _slug(record.collection.get('Name', '')),
        *(METRICS[figure.metric][1] for figure in figures)])))
    if datasets:
        data['datasets'] = datasets
    if figures:
        data['metrics'] = list(dict.fromkeys(METRICS[figure.metric][2] for figure in figures))
        data['model-index'] = [{'name': name, 'results': [_result(figure) for figure in figures]}]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _result(figure: Figure) -> Dict[str, Any]:
    task, kind, metric = METRICS[figure.metric]
    how = 'published, not measured with this file' if figure.source else 'measured with this file'
    result: Dict[str, Any] = {
        'task': {'type': kind, 'name': task}, 'dataset': {'type': _slug(figure.dataset), 'name': figure.dataset},
        'metrics': [{'type': metric, 'name': f'{figure.metric} ({how})', 'value': figure.value}]}
    if figure.source and figure.url:
        result['source'] = {'name': f'Published: {figure.source}', 'url': figure.url}
    return result


def card(metadata: Mapping[str, str], repo: str, file: str, licence: str, record: str = '',
         measured: Mapping[str, float] = {}, dataset: str = '') -> str:
    """Returns the model card of a file: YAML for the Hub, then Markdown.

    Args:
        metadata: Of the file, as :attr:`mmlk.weights.SavedWeights.metadata`.
        repo: ``owner/name`` on the Hub.
        file: Name of the file there.
        licence: Licence of the weights.
        record: Name of a file or a config in the records, whose published figures are shown; empty for none.
        measured: Figures that were measured with the file, in percent, by metric: a key of ``METRICS``.
        dataset: On which they were measured; by default that of the record.

    Raises:
        WeightsError: The record or a metric is not known, or the dataset of measured figures is.
    """
    found = _find_record(record, metadata.get('arch', ''))
    trained_on = found.row.get('Metadata', {}).get('Training Data', '')
    own = _measured(measured, dataset or trained_on or (found.figures[0].dataset if found.figures else ''))
    figures = own + found.figures
    datasets = list(dict.fromkeys(_slug(figure.dataset) for figure in figures))
    name = repo.partition('/')[2]
    lines = ['---', _front_matter(name, licence, found, figures, datasets).rstrip(), '---', '', f'# {name}', '']
    paper = found.collection.get('Paper', {})
    about = f"{metadata.get('arch') or 'Weights'}, {metadata.get('holds', 'weights')}, for mmlk"
    lines += [_markdown(about) + '.', '']
    load = f"'hf-hub:{repo}/{file}'"
    lines += ['```python', 'import mmlk.weights', '', f'mmlk.weights.load(model, {load})', '```', '']
    told = {'Licence': licence, 'Source': metadata.get('source', ''), 'Mean': metadata.get('mean', ''),
            'Standard deviation': metadata.get('std', ''), 'Channels': metadata.get('channels', ''),
            'Classes': ', '.join(_classes(metadata)), 'Record': record, 'Paper': paper.get('URL', ''),
            'Code': found.collection.get('Code', ''), 'Written by': f"mmlk {metadata.get('mmlk', '')}"}
    lines += ['| | |', '|---|---|', *(f'| {key} | {_markdown(shortened(value, 5000))} |' for key, value in told.items()
                                      if value.strip())]
    for title, some in (('Measured with this file', own),
                        ('Published figures, not measured with this file', found.figures)):
        if some:
            lines += ['', f'## {title}', '', '| dataset | metric | % | source |', '|---|---|---|---|']
            lines += [f'| {_markdown(figure.dataset)} | {figure.metric} | {figure.value:g} | '
                      f'{_markdown(figure.source or "given with the upload")} |' for figure in some]
    if found.collection.get('BibTeX'):
        lines += ['', '## Citation', '', '```bibtex', found.collection['BibTeX'].rstrip(), '```']
    return '\n'.join(lines) + '\n'


def _classes(metadata: Mapping[str, str]) -> List[str]:
    try:
        classes = json.loads(metadata.get('classes', '[]'))
    except (RecursionError, ValueError):
        return []
    return [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []


def _markdown(text: str) -> str:
    """Returns text of a file as one line that is neither a cell's end, a link nor HTML."""
    return re.sub(r'([\\|<>\[\]`*])', r'\\\1', one_line(text))


def prepare_upload(weights: str, repo: str, folder: str = '', record: str = '', licence: str = '',
                   measured: Mapping[str, float] = {}, dataset: str = '', new_card: bool = False,
                   private: bool = False) -> PreparedUpload:
    """Writes a folder with a safetensors file and its model card. Nothing is uploaded.

    A card that is in the folder may have been edited, and is kept unless ``new_card`` is True.

    Args:
        weights: A safetensors file.
        repo: ``owner/name`` on the Hub.
        folder: ``work_dirs/hub/owner/name`` by default.
        record: See :func:`card`; by default the one in the file's metadata.
        licence: Licence of the weights, if the file's metadata do not have it.
        measured: See :func:`card`.
        dataset: See :func:`card`.
        new_card: Whether a card in the folder is replaced.
        private: Whether a new repository is private.

    Raises:
        WeightsError: As :func:`card`; or the file is damaged or of another format, the name of the repository is not
            valid, the licence is not known, or the folder cannot be written.
    """
    check_repo(repo)
    path = Path(weights).expanduser()
    read_weights(path)
    metadata = read_metadata(path)
    if metadata is None or path.suffix != '.safetensors':
        raise WeightsError(f'{path} is not a .safetensors file; `mmlk weights save` writes one')
    if not path.name.isprintable():
        raise WeightsError(f'{path}: give the file a name of printable letters')
    known = metadata.get('licence', '')
    if licence and is_stated(known) and licence != known:
        raise WeightsError(f'the licence of {path} is known: {known!r}, not {licence!r}')
    licence = licence or known
    if not is_stated(licence):
        raise WeightsError(f'the licence of {path} is not known ({known or "it is not in the file"}); whoever '
                           'publishes weights has to say it: --licence')
    text = card(metadata, repo, path.name, one_line(licence), record or metadata.get('record', ''), measured, dataset)
    place = Path(folder or Path('work_dirs', 'hub', *repo.split('/'))).expanduser()
    copy, readme = place / path.name, place / CARD
    if not (copy.exists() and copy.samefile(path)):
        with replacing(copy) as temporary:
            shutil.copyfile(path, temporary)
    kept = readme.exists() and not new_card
    if not kept:
        with replacing(readme) as temporary:
            temporary.write_text(text, encoding='utf-8')
    return PreparedUpload(repo, place, path.name, path.stat().st_size, kept, private)


def upload(prepared: PreparedUpload) -> str:
    """Uploads the two files of a prepared folder, with the token of ``HF_TOKEN`` or of ``hf auth login``.

    Returns:
        Address of the commit.

    Raises:
        WeightsError: ``huggingface_hub`` is not installed, or the Hub or the network refused.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise WeightsError(f'an upload needs a package that is not installed: {INSTALL}') from error
    try:
        api = huggingface_hub.HfApi(library_name='mmlk')
        api.create_repo(prepared.repo, private=prepared.private, exist_ok=True)
        done = api.upload_folder(repo_id=prepared.repo, folder_path=str(prepared.folder),
                                 allow_patterns=[escape(prepared.file), CARD],
                                 commit_message=f'Upload {prepared.file}')
    except Exception as error:  # of several libraries
        raise WeightsError(f'{prepared.repo} cannot be uploaded ({type(error).__name__}: {first_line(error)}). It '
                           'needs a token that may write: `hf auth login`, or HF_TOKEN') from error
    return str(getattr(done, 'commit_url', done))
