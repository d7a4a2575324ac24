"""Published weights that mmlk's configs and backbones can use, and where each fact about them was read."""
from dataclasses import dataclass
from typing import Dict, Tuple

Triple = Tuple[float, float, float]

_IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_HALF = (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)


@dataclass(frozen=True)
class Entry:
    """One file.

    ``mean`` and ``std`` are of RGB pixels in 0..255. ``sha256`` is a digest or the beginning of one, empty
    where nobody published any. ``page`` is where a browser can download the file when the direct way fails.
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
    note: str = ''


def _converted(name: str, arch: str, file: str, pretraining: str, size: int, top1: float,
               pixels: Tuple[Triple, Triple] = _IMAGENET, note: str = '') -> Entry:
    # OpenMMLab ends a file's name with the first eight digits of its sha256
    return Entry(name, arch, f'https://download.openmmlab.com/mmclassification/v0/replknet/{file}.pth',
                 'classifier', pretraining, f'{size}x{size}', *pixels, 'MIT; conversion Apache-2.0',
                 'github.com/open-mmlab/mmpretrain configs/replknet/metafile.yml',
                 sha256=file.rsplit('-', 1)[1], note=f'top-1 {top1:.2f}{note}')


def _drive(name: str, arch: str, file_id: str, holds: str, pretraining: str, size: str, note: str = '',
           pixels: Tuple[Triple, Triple] = _IMAGENET) -> Entry:
    # `confirm=t` answers the page that Drive puts before files too large for its virus scan
    url = f'https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t'
    return Entry(name, arch, url, holds, pretraining, size, *pixels, 'MIT',
                 'github.com/DingXiaoH/RepLKNet-pytorch README.md',
                 page=f'https://drive.google.com/file/d/{file_id}/view', note=note)


_1K, _22K, _22K_1K = 'ImageNet-1K', 'ImageNet-22K', 'ImageNet-22K, then 1K'
_73M, _73M_1K = 'MegData73M', 'MegData73M, then ImageNet-1K'
_ADE, _CITYSCAPES = 'UperNet, ADE20K', 'UperNet, Cityscapes'
_FCOS, _CASCADE = 'FCOS, COCO', 'Cascade Mask R-CNN, COCO'
_120 = '120 epochs, for effective receptive fields'

_ENTRIES = (
    _converted('replknet-31b_in1k', '31B', 'replknet-31B_3rdparty_in1k_20221118-fd08e268', _1K, 224, 83.48),
    _converted('replknet-31b_in1k-384', '31B', 'replknet-31B_3rdparty_in1k-384px_20221118-03a170ce',
               _1K, 384, 84.84),
    _converted('replknet-31b_in22k-in1k', '31B', 'replknet-31B_in21k-pre_3rdparty_in1k_20221118-54ed5c46',
               _22K_1K, 224, 85.20),
    _converted('replknet-31b_in22k-in1k-384', '31B',
               'replknet-31B_in21k-pre_3rdparty_in1k-384px_20221118-76c92b24', _22K_1K, 384, 85.99),
    _converted('replknet-31l_in22k-in1k-384', '31L',
               'replknet-31L_in21k-pre_3rdparty_in1k-384px_20221118-dc3fc07c', _22K_1K, 384, 86.63),
    # mean and std by the official README; mmpretrain's config has 122.5 for both, and its figure is with that
    _converted('replknet-xl_meg73m-in1k-320', 'XL',
               'replknet-XL_meg73m-pre_3rdparty_in1k-320px_20221118-88259b1d', _73M_1K, 320, 87.57, _HALF,
               ', official 87.8'),
    _drive('replknet-31b_in22k', '31B', '1PYJiMszZYNrkZOeYwjccvxX8UHMALB7z', 'classifier', _22K, '224x224'),
    _drive('replknet-31l_in22k', '31L', '16jcPsPwo5rko7ojWS9k_W-svHX-iFknY', 'classifier', _22K, '224x224'),
    _drive('replknet-xl_meg73m', 'XL', '1CBHAEUlCzoHfiAQmMIjZhDMAIyHUmAAj', 'classifier', _73M, 'not stated',
           pixels=_HALF),
    _drive('replknet-13_in1k-120ep', '13', '15gohkZof_Qi4__jluUXacB_0Gvbuf5GI', 'classifier', _1K, '224x224',
           _120),
    _drive('replknet-31b_in1k-120ep', '31B', '1aQQiGfCoiBYSw2Ms506-ZFpnC9V6891s', 'classifier', _1K,
           '224x224', _120),
    _drive('upernet_replknet31b_ade20k', '31B', '1ZV1CP1KzeSdH6_wKw4ytVe9BlCGHf89s', _ADE, _1K, '512x512',
           'mIoU 49.9 ss, 50.6 ms'),
    _drive('upernet_replknet31b-22k_ade20k', '31B', '1W2W4nD2HzTsG_yP9ppLYAqMo3T3JHBNW', _ADE, _22K,
           '640x640', 'mIoU 51.5 ss, 52.3 ms'),
    _drive('upernet_replknet31l-22k_ade20k', '31L', '1nrZ723LC3QYjcVHJm8jpOOcecfWMsjxL', _ADE, _22K,
           '640x640', 'mIoU 52.4 ss, 52.7 ms'),
    _drive('upernet_replknetxl_ade20k', 'XL', '14GbBI8tdeEl_ECytDCdrfAfNm1McqMv4', _ADE, _73M, '640x640',
           'mIoU 55.2 ss, 56.0 ms', _HALF),
    _drive('upernet_replknet31b_cityscapes', '31B', '1j3YwToRqTHHi7ocln0iBz1tE6hItD_JO', _CITYSCAPES, _1K,
           '769x769', 'mIoU 83.1 ss, 83.5 ms'),
    _drive('fcos_replknet31b_coco', '31B', '1g0jSpONBF2wJDXYhB7P3mbqAVE587Myi', _FCOS, _1K, '1333x800',
           'box AP 47.0'),
    _drive('cascade_mask_rcnn_replknet31b_coco', '31B', '1XqWSkQZSLMIhyaQvaIhGbuFhdDoRJQ4Z', _CASCADE, _1K,
           '1333x800', 'box AP 52.2, mask AP 45.2'),
    _drive('cascade_mask_rcnn_replknet31b-22k_coco', '31B', '1faI-MiNuPidum6dC6dGADfYWe6J-bTAz', _CASCADE,
           _22K, '1333x800', 'box AP 53.0, mask AP 46.0'),
    _drive('cascade_mask_rcnn_replknet31l-22k_coco', '31L', '1qLQONhIjCEuykhdy-wHx1Ah9lT3v2OXh', _CASCADE,
           _22K, '1333x800', 'box AP 53.9, mask AP 46.5'),
    _drive('cascade_mask_rcnn_replknetxl_coco', 'XL', '1i0TqfwQJQUVHWdB5oyDgxlUUqzPZmIVr', _CASCADE, _73M,
           '1333x800', 'box AP 55.5, mask AP 48.0', _HALF),
)

CATALOG: Dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
