"""RepLKNet's files: the official ones on Google Drive, and mmpretrain's conversions of some of them."""
from typing import Tuple

from .entry import (ADE_UPERNET, CITYSCAPES_UPERNET, COCO_CASCADE, CONVERTED, HALF, IMAGENET, IN1K, IN22K, IN22K_1K,
                    Entry, Triple, drive_page, drive_url, openmmlab)


def _converted(name: str, arch: str, file: str, pretraining: str, size: int, top1: float,
               pixels: Tuple[Triple, Triple] = IMAGENET, note: str = '') -> Entry:
    url, sha256, page = openmmlab(f'mmclassification/v0/replknet/{file}.pth')
    return Entry(name, arch, url, 'classifier', pretraining, f'{size}x{size}', *pixels, f'MIT; {CONVERTED}',
                 'github.com/open-mmlab/mmpretrain configs/replknet/metafile.yml', sha256=sha256, page=page,
                 note=f'top-1 {top1:.2f}{note}')


def _drive(name: str, arch: str, file_id: str, holds: str, pretraining: str, size: str, note: str = '',
           pixels: Tuple[Triple, Triple] = IMAGENET) -> Entry:
    return Entry(name, arch, drive_url(file_id), holds, pretraining, size, *pixels, 'MIT',
                 'github.com/DingXiaoH/RepLKNet-pytorch README.md', page=drive_page(file_id), note=note)


_73M, _73M_1K = 'MegData73M', 'MegData73M, then ImageNet-1K'
_120 = '120 epochs, for effective receptive fields'

ENTRIES = (
    _converted('replknet-31b_in1k', '31B', 'replknet-31B_3rdparty_in1k_20221118-fd08e268', IN1K, 224, 83.48),
    _converted('replknet-31b_in1k-384', '31B', 'replknet-31B_3rdparty_in1k-384px_20221118-03a170ce',
               IN1K, 384, 84.84),
    _converted('replknet-31b_in22k-in1k', '31B', 'replknet-31B_in21k-pre_3rdparty_in1k_20221118-54ed5c46',
               IN22K_1K, 224, 85.20),
    _converted('replknet-31b_in22k-in1k-384', '31B',
               'replknet-31B_in21k-pre_3rdparty_in1k-384px_20221118-76c92b24', IN22K_1K, 384, 85.99),
    _converted('replknet-31l_in22k-in1k-384', '31L',
               'replknet-31L_in21k-pre_3rdparty_in1k-384px_20221118-dc3fc07c', IN22K_1K, 384, 86.63),
    # mean and std by the official README; mmpretrain's config has 122.5 for both, and its figure is with that
    _converted('replknet-xl_meg73m-in1k-320', 'XL',
               'replknet-XL_meg73m-pre_3rdparty_in1k-320px_20221118-88259b1d', _73M_1K, 320, 87.57, HALF,
               ', official 87.8'),
    _drive('replknet-31b_in22k', '31B', '1PYJiMszZYNrkZOeYwjccvxX8UHMALB7z', 'classifier', IN22K, '224x224'),
    _drive('replknet-31l_in22k', '31L', '16jcPsPwo5rko7ojWS9k_W-svHX-iFknY', 'classifier', IN22K, '224x224'),
    _drive('replknet-xl_meg73m', 'XL', '1CBHAEUlCzoHfiAQmMIjZhDMAIyHUmAAj', 'classifier', _73M, 'not stated',
           pixels=HALF),
    _drive('replknet-13_in1k-120ep', '13', '15gohkZof_Qi4__jluUXacB_0Gvbuf5GI', 'classifier', IN1K, '224x224',
           _120),
    _drive('replknet-31b_in1k-120ep', '31B', '1aQQiGfCoiBYSw2Ms506-ZFpnC9V6891s', 'classifier', IN1K,
           '224x224', _120),
    _drive('upernet_replknet31b_ade20k', '31B', '1ZV1CP1KzeSdH6_wKw4ytVe9BlCGHf89s', ADE_UPERNET, IN1K, '512x512',
           'mIoU 49.9 ss, 50.6 ms'),
    _drive('upernet_replknet31b-22k_ade20k', '31B', '1W2W4nD2HzTsG_yP9ppLYAqMo3T3JHBNW', ADE_UPERNET, IN22K,
           '640x640', 'mIoU 51.5 ss, 52.3 ms'),
    _drive('upernet_replknet31l-22k_ade20k', '31L', '1nrZ723LC3QYjcVHJm8jpOOcecfWMsjxL', ADE_UPERNET, IN22K,
           '640x640', 'mIoU 52.4 ss, 52.7 ms'),
    _drive('upernet_replknetxl_ade20k', 'XL', '14GbBI8tdeEl_ECytDCdrfAfNm1McqMv4', ADE_UPERNET, _73M, '640x640',
           'mIoU 55.2 ss, 56.0 ms', HALF),
    _drive('upernet_replknet31b_cityscapes', '31B', '1j3YwToRqTHHi7ocln0iBz1tE6hItD_JO', CITYSCAPES_UPERNET, IN1K,
           '769x769', 'mIoU 83.1 ss, 83.5 ms'),
    _drive('fcos_replknet31b_coco', '31B', '1g0jSpONBF2wJDXYhB7P3mbqAVE587Myi', 'FCOS, COCO', IN1K, '1333x800',
           'box AP 47.0'),
    _drive('cascade_mask_rcnn_replknet31b_coco', '31B', '1XqWSkQZSLMIhyaQvaIhGbuFhdDoRJQ4Z', COCO_CASCADE, IN1K,
           '1333x800', 'box AP 52.2, mask AP 45.2'),
    _drive('cascade_mask_rcnn_replknet31b-22k_coco', '31B', '1faI-MiNuPidum6dC6dGADfYWe6J-bTAz', COCO_CASCADE,
           IN22K, '1333x800', 'box AP 53.0, mask AP 46.0'),
    _drive('cascade_mask_rcnn_replknet31l-22k_coco', '31L', '1qLQONhIjCEuykhdy-wHx1Ah9lT3v2OXh', COCO_CASCADE,
           IN22K, '1333x800', 'box AP 53.9, mask AP 46.5'),
    _drive('cascade_mask_rcnn_replknetxl_coco', 'XL', '1i0TqfwQJQUVHWdB5oyDgxlUUqzPZmIVr', COCO_CASCADE, _73M,
           '1333x800', 'box AP 55.5, mask AP 48.0', HALF),
)
