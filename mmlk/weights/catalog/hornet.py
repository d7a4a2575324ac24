"""HorNet's files: the official ones, and mmpretrain's conversions of those from which the downstream models began.

The main README and the downstream READMEs link different classifiers; mmpretrain converted the latter.
"""
from .entry import ADE_UPERNET, COCO_CASCADE, CONVERTED, IMAGENET, IN1K, IN22K, Entry, openmmlab

_REPO = 'github.com/raoyongming/HorNet'


def _converted(arch: str, file: str, top1: float) -> Entry:
    url, sha256, page = openmmlab(f'mmclassification/v0/hornet/hornet-{file}.pth')
    return Entry(f'hornet-{arch.lower()}_in1k', arch, url, 'classifier', IN1K, '224x224', *IMAGENET,
                 f'MIT; {CONVERTED}', 'github.com/open-mmlab/mmpretrain configs/hornet/metafile.yml',
                 sha256=sha256, page=page, note=f'top-1 {top1}')


def _cloud(name: str, arch: str, share: str, holds: str, pretraining: str, size: str, note: str = '',
           source: str = 'README.md') -> Entry:
    page = f'https://cloud.tsinghua.edu.cn/f/{share}/'
    return Entry(name, arch, f'{page}?dl=1', holds, pretraining, size, *IMAGENET, 'MIT', f'{_REPO} {source}',
                 page=page, note=note)


def _upernet(name: str, arch: str, share: str, pretraining: str, size: int, ss: float, ms: float) -> Entry:
    return _cloud(f'upernet_hornet-{name}_ade20k', arch, share, ADE_UPERNET, pretraining, f'{size}x{size}',
                  f'mIoU {ss} ss, {ms} ms', 'semantic_segmentation/README.md')


def _cascade(name: str, arch: str, share: str, pretraining: str, box: float, mask: float) -> Entry:
    return _cloud(f'cascade_mask_rcnn_hornet-{name}_coco', arch, share, COCO_CASCADE, pretraining, '1333x800',
                  f'box AP {box}, mask AP {mask}', 'object_detection/README.md')


def _official(arch: str, share: str, top1: float) -> Entry:
    return _cloud(f'hornet-{arch.lower()}_in1k-official', arch, share, 'classifier', IN1K, '224x224', f'top-1 {top1}')


_DOWNSTREAM = 'semantic_segmentation/README.md'

ENTRIES = (
    _converted('T', 'tiny_3rdparty_in1k_20220915-0e8eedff', 82.84),
    _converted('T-GF', 'tiny-gf_3rdparty_in1k_20220915-4c35a66b', 82.98),
    _converted('S', 'small_3rdparty_in1k_20220915-5935f60f', 83.79),
    _converted('S-GF', 'small-gf_3rdparty_in1k_20220915-649ca492', 83.98),
    _converted('B', 'base_3rdparty_in1k_20220915-a06176bb', 84.24),
    _converted('B-GF', 'base-gf_3rdparty_in1k_20220915-82c06fa7', 84.32),
    _cloud('hornet-l_in22k', 'L', 'a76f7ce114ad4e9c8ffb', 'classifier', IN22K, '224x224', source=_DOWNSTREAM),
    _cloud('hornet-l-gf_in22k', 'L-GF', '9253bd0d50c84ab1b71e', 'classifier', IN22K, '224x224', source=_DOWNSTREAM),
    _official('T', 'bac9690c72944d19aca1', 82.8),
    _official('T-GF', '460e759c82324ea6bfa3', 83.0),
    _official('S', '8ef64277da0e469ea857', 83.8),
    _official('S-GF', '959603ca287d4c09ad49', 84.0),
    _official('B', '13a748487711492e9704', 84.2),
    _official('B-GF', 'c212d1d8a3914b47a5c1', 84.3),
    _cloud('hornet-l_in22k-official', 'L', 'c2fc23caae084a3aa73d', 'classifier', IN22K, '224x224'),
    _cloud('hornet-l-gf_in22k-official', 'L-GF', '8600206ebdfa485f98d0', 'classifier', IN22K, '224x224'),
    _cloud('hornet-l-gf-384_in22k-official', 'L-GF-384', 'eec48d5eca5a48d98fd2', 'classifier', IN22K, '384x384'),
    _upernet('t', 'T', '684334b0a7ea436b9a97', IN1K, 512, 48.1, 48.9),
    _upernet('t-gf', 'T-GF-384', '34725e1401194786bb76', IN1K, 512, 49.2, 49.3),
    _upernet('s', 'S', '0e488e21a88d414da90c', IN1K, 512, 49.2, 49.8),
    _upernet('s-gf', 'S-GF-384', 'd37290faa8a34bc091c3', IN1K, 512, 50.0, 50.5),
    _upernet('b', 'B', '98288e9023c2425a880c', IN1K, 512, 50.0, 50.5),
    _upernet('b-gf', 'B-GF-384', 'e50ecead21e4408187b7', IN1K, 640, 50.5, 50.9),
    _upernet('l-22k', 'L', 'd7a782e07a354f59bf62', IN22K, 640, 54.1, 54.5),
    _upernet('l-gf-22k', 'L-GF-384', '3dbb38bae1694653a666', IN22K, 640, 55.0, 55.2),
    _cascade('t', 'T', '19daa3854a6b4c75bf23', IN1K, 51.7, 44.8),
    _cascade('t-gf', 'T-GF', '1ca353fb6ac44b54a2d8', IN1K, 52.4, 45.6),
    _cascade('s', 'S', '6af0439735dc473f8646', IN1K, 52.7, 45.6),
    _cascade('s-gf', 'S-GF', 'fd9a3127b18f404d8e95', IN1K, 53.3, 46.3),
    _cascade('b', 'B', '324de62466a848129e19', IN1K, 53.3, 46.1),
    _cascade('b-gf', 'B-GF', '97d8587c8a0248fcac19', IN1K, 54.0, 46.9),
    _cascade('l-22k', 'L', '975af666e64840588e3e', IN22K, 55.4, 48.0),
    _cascade('l-gf-22k', 'L-GF-384', '597f655fe9b84d50bffb', IN22K, 56.0, 48.6),
)
