"""One published file of weights, and what several sources of such files have in common."""
from dataclasses import dataclass
from typing import Tuple

Triple = Tuple[float, float, float]

IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
HALF = (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)

IN1K, IN22K, IN22K_1K = 'ImageNet-1K', 'ImageNet-22K', 'ImageNet-22K, then 1K'
ADE_UPERNET, CITYSCAPES_UPERNET = 'UperNet, ADE20K', 'UperNet, Cityscapes'
COCO_MASK, COCO_CASCADE = 'Mask R-CNN, COCO', 'Cascade Mask R-CNN, COCO'

CONVERTED = 'conversion Apache-2.0'


@dataclass(frozen=True)
class Entry:
    """One file.

    ``arch`` is a name of the family's ``ARCHS``; ``holds`` is 'classifier' or the trained model and its data set.
    ``mean`` and ``std`` are of RGB pixels in 0..255. ``sha256`` is a digest or the beginning of one, empty where
    nobody published any. ``source`` is where the URL was read. ``page`` is where else a browser can download the file.
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


def _digest_in(url: str) -> str:
    """The beginning of the sha256, with which OpenMMLab and torchvision end a file's name."""
    return url.rsplit('-', 1)[1].split('.', 1)[0]


def openmmlab(path: str) -> Tuple[str, str, str]:
    """URL and digest of a file of OpenMMLab's, and where the onedl distributions of its toolboxes keep the same."""
    url = f'https://download.openmmlab.com/{path}'
    return url, _digest_in(url), f'https://mmassets.onedl.ai/{path}'


def torchvision(file: str) -> Tuple[str, str]:
    """URL and digest of a file of torchvision's."""
    url = f'https://download.pytorch.org/models/{file}.pth'
    return url, _digest_in(url)


def drive_url(file_id: str) -> str:
    """Of a file on Google Drive, directly."""
    # `confirm=t` answers the page that Drive puts before files too large for its virus scan
    return f'https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t'


def drive_page(file_id: str) -> str:
    """Of a file on Google Drive, in a browser."""
    return f'https://drive.google.com/file/d/{file_id}/view'
