"""GFNet's files, all official; no downstream model was published."""
from .entry import IMAGENET, IN1K, Entry, drive_page


def _official(arch: str, share: str, file_id: str, top1: float) -> Entry:
    return Entry(f'gfnet-{arch.lower()}_in1k', arch, f'https://cloud.tsinghua.edu.cn/f/{share}/?dl=1', 'classifier',
                 IN1K, '224x224', *IMAGENET, 'MIT', 'github.com/raoyongming/GFNet README.md',
                 page=drive_page(file_id), note=f'top-1 {top1}')


ENTRIES = (
    _official('H-Ti', 'b22dd45eccbe462cbbfb', '1Nrq5sfHD9RklCMl6WkcVrAWI5vSVzwSm', 80.1),
    _official('H-S', '5229cb4d1daf48e69675', '1w4d7o1LTBjmSkb5NKzgXBBiwdBOlwiie', 81.5),
    _official('H-B', '954c5af21e824ba6b40c', '1F900_-yPH7GFYfTt60xn4tu5a926DYL0', 82.9),
)
