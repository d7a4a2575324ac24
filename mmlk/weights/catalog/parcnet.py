"""ParC-Net's files, all official; no weights of the other backbones with ParC were published.

The networks were trained on pixels in BGR order, divided by 255.
"""
from .entry import IN1K, Entry


def _official(name: str, task: str, holds: str, size: str, note: str) -> Entry:
    return Entry(name, 'S', f'https://github.com/hkzhang91/ParC-Net/raw/main/pretrained_models/{task}/'
                 'checkpoint_ema_avg.pt', holds, IN1K, size, (0.0, ) * 3, (255.0, ) * 3, 'not stated',
                 'github.com/hkzhang91/ParC-Net Readme.md', note=f'{note}, BGR pixels')


ENTRIES = (
    _official('parcnet-s_in1k', 'classification', 'classifier', '256x256', 'top-1 78.6'),
    _official('ssd_parcnet-s_coco', 'detection', 'SSD, COCO', '320x320', 'box AP 28.8'),
    _official('deeplabv3_parcnet-s_voc', 'segmentation', 'DeepLabv3, Pascal VOC', '512x512', 'mIoU 79.7'),
)
