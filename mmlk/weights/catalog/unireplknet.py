"""UniRepLKNet's files, all official: classifiers on the Hugging Face hub, everything on Google Drive.

The downstream models are on the hub too, under names of which the README says only some.
"""
from .entry import ADE_UPERNET, COCO_CASCADE, IMAGENET, IN1K, IN22K, IN22K_1K, Entry, drive_page, drive_url

_REPO = 'github.com/AILab-CVC/UniRepLKNet'


def _hub(name: str, arch: str, file: str, file_id: str, pretraining: str, size: int = 224, note: str = '') -> Entry:
    url = f'https://huggingface.co/DingXiaoH/UniRepLKNet/resolve/main/unireplknet_{arch.lower()}_{file}.pth'
    return Entry(f'unireplknet-{name}', arch, url, 'classifier', pretraining, f'{size}x{size}', *IMAGENET,
                 'Apache-2.0', f'{_REPO} unireplknet.py and README.md', page=drive_page(file_id), note=note)


def _drive(name: str, arch: str, file_id: str, holds: str, pretraining: str, size: str, note: str) -> Entry:
    return Entry(name, arch, drive_url(file_id), holds, pretraining, size, *IMAGENET, 'Apache-2.0',
                 f'{_REPO} README.md', page=drive_page(file_id), note=note)


def _upernet(name: str, arch: str, file_id: str, pretraining: str, size: int, ss: float, ms: float) -> Entry:
    return _drive(f'upernet_unireplknet-{name}_ade20k', arch, file_id, ADE_UPERNET, pretraining, f'{size}x{size}',
                  f'mIoU {ss} ss, {ms} ms')


def _cascade(name: str, arch: str, file_id: str, pretraining: str, box: float, mask: float) -> Entry:
    return _drive(f'cascade_mask_rcnn_unireplknet-{name}_coco', arch, file_id, COCO_CASCADE, pretraining, '1333x800',
                  f'box AP {box}, mask AP {mask}')


ENTRIES = (
    _hub('a_in1k', 'A', 'in1k_224_acc77.03', '1jUB-lq6NMTbeBvGTDvAarKWh-ZfMMZWt', IN1K, note='top-1 77.03'),
    _hub('f_in1k', 'F', 'in1k_224_acc78.58', '1vYqhCNx3q-z0fVT4UZecFTUmb9IDaYh9', IN1K, note='top-1 78.58'),
    _hub('p_in1k', 'P', 'in1k_224_acc80.23', '1D7rljWnnzEGDn8MDkvAWJ8qd1SCix6Vm', IN1K, note='top-1 80.23'),
    _hub('n_in1k', 'N', 'in1k_224_acc81.64', '1tMHOl55C7h44ag8SLUuaP0bBUUpVXhKj', IN1K, note='top-1 81.64'),
    _hub('t_in1k', 'T', 'in1k_224_acc83.21', '12Xon3FWkzEQV1nnNsF2U8XDMD-7NO2cJ', IN1K, note='top-1 83.21'),
    _hub('s_in1k', 'S', 'in1k_224_acc83.91', '11YEOcKs4WNprRzCvKe-fB5z-l7zQv3kb', IN1K, note='top-1 83.91'),
    _hub('s_in22k', 'S', 'in22k_pretrain', '18ljg1qZKNxNvpUuOnrZSZ_DS81vGVU_9', IN22K),
    _hub('b_in22k', 'B', 'in22k_pretrain', '1t1txZOTpwXGUMVsqyUxpzE5EGLqMX5li', IN22K),
    _hub('l_in22k', 'L', 'in22k_pretrain', '1PEY474n6a7pZ3vJitsU7ZLzwBI00pf7u', IN22K, 192),
    _hub('xl_in22k', 'XL', 'in22k_pretrain', '1OP7I0jabljm8LKXTypk4HDmF9dQQqYib', IN22K, 192),
    _hub('s_in22k-in1k-384', 'S', 'in22k_to_in1k_384_acc86.44', '1PzEHFOgEllMRIB-emkX_2VjXyBYC_X0z', IN22K_1K, 384,
         'top-1 86.44'),
    _hub('b_in22k-in1k-384', 'B', 'in22k_to_in1k_384_acc87.40', '1T4BB3xx6FsWrK5QpTy7FwBrLuOMcZcEu', IN22K_1K, 384,
         'top-1 87.40'),
    _hub('l_in22k-in1k-384', 'L', 'in22k_to_in1k_384_acc87.88', '10jJGzXX3cFRrfk3oAoIoWRnKSAaquQtM', IN22K_1K, 384,
         'top-1 87.88'),
    _hub('xl_in22k-in1k-384', 'XL', 'in22k_to_in1k_384_acc87.96', '1bS6DfAdQW-tHfyKOEpE_fXypi45CLnT3', IN22K_1K, 384,
         'top-1 87.96'),
    _upernet('t', 'T', '1R2teeQt7q48EBBRbeVXShISpOmS5YHjs', IN1K, 512, 48.6, 49.1),
    _upernet('s', 'S', '1SBHvbK4zoPSZ827F5Sp209LYIh2T7Iew', IN1K, 512, 50.5, 51.0),
    _upernet('s-22k-512', 'S', '15dNuw34kia5qtt6UijcnutEktY05OrKH', IN22K, 512, 51.9, 52.7),
    _upernet('s-22k', 'S', '1WVmAQ8sKDeX0APS9Q88z4dZge31kHx2v', IN22K, 640, 52.3, 52.7),
    _upernet('b-22k', 'B', '1sflCn8ny-cU5Bk8yBGE3E-yIO8eECE0H', IN22K, 640, 53.5, 53.9),
    _upernet('l-22k', 'L', '1Qev75aKZY5bNAM17cLecD2OoZwKf5DA7', IN22K, 640, 54.5, 55.0),
    _upernet('xl-22k', 'XL', '1Ajwc7ZOk5eK19XX6VzgmAu2Wn0Dkb3jI', IN22K, 640, 55.2, 55.6),
    _cascade('t', 'T', '15LVEXyC8xxOIHhUeSFeolyZ1IVXVjQ4I', IN1K, 51.7, 44.9),
    _cascade('s', 'S', '1wcdMn35aMLgjIFVEIaJYMjOwMtuoz58I', IN1K, 53.0, 45.9),
    _cascade('s-22k', 'S', '1pZmrLRbM8bjiQvr_xenReXmtA7M3f_Ii', IN22K, 54.3, 47.1),
    _cascade('b-22k', 'B', '1CCyk0q4E4tuFLWqafHIC-DywdJJ0-pMQ', IN22K, 54.8, 47.4),
    _cascade('l-22k', 'L', '1m9WzhfhEF1KKxLH8IxE5vkM7HlucJu4N', IN22K, 55.8, 48.4),
    _cascade('xl-22k', 'XL', '1np1zCV_34MdOsViKMVdO1l4feLe8evmp', IN22K, 56.4, 49.0),
)
