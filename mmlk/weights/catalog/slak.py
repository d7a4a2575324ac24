"""SLaK's files, all official; the Cascade Mask R-CNN of 36 epochs was not released."""
from .entry import ADE_UPERNET, COCO_CASCADE, IMAGENET, IN1K, Entry, drive_page, drive_url

_SOURCE = 'github.com/VITA-Group/SLaK README.md'


def _drive(name: str, arch: str, file_id: str, top1: float) -> Entry:
    return Entry(name, arch, drive_url(file_id), 'classifier', IN1K, '224x224', *IMAGENET, 'MIT', _SOURCE,
                 page=drive_page(file_id), note=f'top-1 {top1}, 300 epochs')


def _surf(name: str, arch: str, share: str, holds: str, size: str, note: str) -> Entry:
    page = f'https://surfdrive.surf.nl/files/index.php/s/{share}'
    return Entry(name, arch, f'{page}/download', holds, IN1K, size, *IMAGENET, 'MIT', _SOURCE, page=page, note=note)


ENTRIES = (
    _drive('slak-t_in1k', 'T', '1Iut2f5FMS_77jGPYoUJDQzDIXOsax1u4', 82.5),
    _drive('slak-s_in1k', 'S', '1etM6KQbnlsgDAZ37adsQJ3UI8Bbv2AVe', 83.8),
    _drive('slak-b_in1k', 'B', '1duUxUD3RSblQ6eDHd0n-u0aulwGypf1j', 84.0),
    _surf('slak-t_in1k-120ep', 'T', 'WiQYWNclJ9bW5XV', 'classifier', '224x224', 'top-1 81.6, 120 epochs'),
    _surf('slak-t-31_in1k-120ep', 'T-31', 'VXzBxFXQdlAQ7h8', 'classifier', '224x224', 'top-1 81.5, 120 epochs'),
    _surf('slak-t-61_in1k-120ep', 'T-61', 'VpR1te71NmVImJb', 'classifier', '224x224', 'top-1 81.5, 120 epochs'),
    _surf('upernet_slak-t_ade20k', 'T', 'cc6Pqb7IZaecWMv', ADE_UPERNET, '512x512', 'mIoU 47.6'),
    _surf('upernet_slak-s_ade20k', 'S', 'HMLBXtKUDY6wyFF', ADE_UPERNET, '512x512', 'mIoU 49.4'),
    _surf('upernet_slak-b_ade20k', 'B', 'JDZ6dMBMZDxUHQG', ADE_UPERNET, '512x512', 'mIoU 50.0'),
    _surf('cascade_mask_rcnn_slak-t-120ep_coco', 'T', '2IvPyGgSTT2RvPu', COCO_CASCADE, '1333x800',
          'box AP 48.4, mask AP 41.8, 12 epochs from the 120-epoch classifier'),
)
