"""The catalogue of published weights, which is read from the records in ``configs/metafiles``.

A record is the YAML file of a family, in the format of OpenMMLab's metafiles. Two of its lists describe files of
weights. ``Files`` has one entry for each file that no config of mmlk trains. ``Models`` has one entry for each config,
in which ``Weights`` is the URL of the published model and ``File`` describes the file. ``docs/add_a_backbone.md``
explains every field.

Importing this module reads no file and does not import torch. ``CATALOG`` and ``FAMILIES`` are read at the first
access.
"""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Tuple

import yaml

from mmlk._paths import MIM

__all__ = ['CATALOG', 'FAMILIES', 'IMAGENET', 'Entry', 'Triple', 'entries', 'read_record', 'read_records']

Triple = Tuple[float, float, float]

#: Mean and standard deviation of the RGB pixels of ImageNet, in the range 0 to 255.
IMAGENET: Tuple[Triple, Triple] = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

#: All entries by name.
CATALOG: Dict[str, 'Entry']
#: The entries by family: the class name of a backbone of mmlk, or the name of a baseline's collection.
FAMILIES: Dict[str, Tuple['Entry', ...]]

RECORDS = MIM / 'configs' / 'metafiles'
# libyaml, which the wheels of PyYAML include, is ten times as fast
_SafeLoader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
_FIGURES = {'Top 1 Accuracy': 'top-1 {}', 'mIoU': 'mIoU {}', 'mIoU(ms+flip)': '{} ms', 'box AP': 'box AP {}',
            'mask AP': 'mask AP {}'}


@dataclass(frozen=True)
class Entry:
    """One published file of weights.

    Args:
        name: Name in the catalogue, and name of the file in the cache.
        arch: A key of the family's ``ARCHS``; for a baseline, the name of the architecture in its paper.
        url: URL of the file.
        holds: 'classifier', or method and dataset of a trained model, for example 'UPerNet, ADE20K'.
        pretraining: Dataset of the classifier, or of the pretrained classifier of the model.
        image_size: Width x height of the training images in pixels; 'not stated' if the source does not give it.
        mean: Mean of the pixels of each channel, in the range 0 to 255, in the order of ``channels``.
        std: Standard deviation of the pixels of each channel, likewise.
        licence: Licence of the file.
        source: Source of the URL and the metrics.
        sha256: Hexadecimal digest of the file, or the beginning of it; empty if none was published.
        page: Another address from which a browser can download the file; empty if there is none.
        channels: Order of the input channels, 'RGB' or 'BGR'.
        metrics: Published results by name, in percent.
        remark: Other information for users.
    """
    name: str
    arch: str
    url: str
    holds: str
    pretraining: str
    image_size: str
    mean: Triple
    std: Triple
    licence: str
    source: str
    sha256: str = ''
    page: str = ''
    channels: str = 'RGB'
    metrics: Mapping[str, float] = field(default_factory=dict)
    remark: str = ''

    @property
    def figures(self) -> str:
        """The published results in one line, for example 'mIoU 41.5 ss, 42.5 ms'; empty if there are none."""
        figures = [text.format(self.metrics[name]) for name, text in _FIGURES.items() if name in self.metrics]
        if 'mIoU(ms+flip)' in self.metrics:
            figures[0] += ' ss'  # single-scale
        return ', '.join(figures)

    @property
    def note(self) -> str:
        """The published results, the remark, and the order of the channels if it is not RGB, in one line."""
        return ', '.join(filter(None, (self.figures, self.remark, 'BGR pixels' if self.channels == 'BGR' else '')))


def read_record(path: Path) -> Dict[str, Any]:
    """Reads the record in a YAML file.

    Raises:
        ValueError: The file is not YAML, or does not have the lists of a record.
    """
    try:
        record = yaml.load(path.read_text(encoding='utf-8'), Loader=_SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} cannot be read as YAML: {error}') from error
    if not isinstance(record, dict) or not isinstance(record.get('Models'), list):
        raise ValueError(f"{path} is no record of a family: it needs a list 'Models', as in docs/add_a_backbone.md")
    return record


def read_records(folder: Path) -> Dict[Path, Dict[str, Any]]:
    """Reads all records of a folder. Returns them by path: first those of mmlk's backbones, then baselines, by name."""
    records = {path: read_record(path) for path in sorted(folder.glob('*.yml'))}
    return dict(sorted(records.items(), key=lambda item: not any(map(_is_ours, item[1].get('Collections') or []))))


def _is_ours(collection: Dict[str, Any]) -> bool:
    return str((collection.get('Backbones') or [''])[0]).startswith('mmlk.')


def _family(collection: Dict[str, Any]) -> str:
    """Returns the class name of the backbone in mmlk; if there is none, the name of the collection."""
    return collection['Backbones'][0].partition('.')[2] if _is_ours(collection) else collection['Name']


def _entry(name: str, fields: Mapping[str, Any], **more: Any) -> Entry:
    """Returns the entry that is described by fields of a record."""
    known = dict(
        name=name, arch=fields['Arch'], mean=tuple(fields['Mean']), std=tuple(fields['Std']),
        image_size=fields['Image Size'], channels=fields['Channels'], licence=fields['License'],
        sha256=fields.get('SHA256', ''), page=fields.get('Page', ''), remark=fields.get('Note', ''), **more)
    text = {key: value for key, value in known.items() if key not in ('mean', 'std', 'metrics')}
    wrong = [key for key, value in text.items() if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} must be text; put it in quotes")
    if known['channels'] not in ('RGB', 'BGR'):
        raise ValueError(f"Channels is RGB or BGR, got {known['channels']}")
    return Entry(**known)


def _of_file(file: Mapping[str, Any]) -> Entry:
    return _entry(file['Name'], file, url=file['Weights'], holds=file['Holds'], pretraining=file['Pretraining'],
                  source=file['Source'], metrics=file.get('Metrics', {}))


def _of_row(row: Mapping[str, Any]) -> Entry:
    metadata = row['Metadata']
    metrics = {name: value for result in row['Results'] for name, value in result['Metrics'].items()}
    return _entry(row['Name'], row['File'], url=row['Weights'], metrics=metrics, source=row['Published']['Source'],
                  holds=f"{metadata['Architecture'][1]}, {metadata['Training Data']}",
                  pretraining=metadata['Pretraining'])


def entries(record: Mapping[str, Any]) -> Dict[str, List[Entry]]:
    """Returns the entries of a record by family.

    Raises:
        ValueError: A field of a file is missing or not valid; the message names the file and the field.
    """
    found: Dict[str, List[Entry]] = {}
    families = {collection['Name']: _family(collection) for collection in record.get('Collections') or []}
    files: List[Tuple[Mapping[str, Any], Callable[[Any], Entry]]]
    files = [(file, _of_file) for file in record.get('Files') or []]
    files += [(row, _of_row) for row in record['Models'] if 'Weights' in row]
    for fields, make in files:
        try:
            found.setdefault(families[fields['In Collection']], []).append(make(fields))
        except KeyError as error:
            raise ValueError(f"{fields.get('Name')}: there is no {error}; see docs/add_a_backbone.md") from error
        except ValueError as error:
            raise ValueError(f"{fields.get('Name')}: {error}") from error
    return found


def _load() -> None:
    families: Dict[str, Tuple[Entry, ...]] = {}
    for path, record in read_records(RECORDS).items():
        try:
            families.update((family, tuple(found)) for family, found in entries(record).items())
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
    globals().update(FAMILIES=families,
                     CATALOG={entry.name: entry for found in families.values() for entry in found})


def __getattr__(name: str) -> Any:
    if name not in ('CATALOG', 'FAMILIES'):
        raise AttributeError(f'module {__name__} has no attribute {name}')
    _load()
    return globals()[name]
