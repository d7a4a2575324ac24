"""Licences of weights that restrict what they may be used for."""
import re
from functools import lru_cache

from mmlk._text import one_line

# Creative Commons' NC, Apple's licence for machine learning research, and licences in words
_NON_COMMERCIAL = re.compile(r'\bNC\b|non-?\s?commercial|research[ -]only|\bamlr\b', re.IGNORECASE)
# those that publishers wrote for their own weights, such as 'DINOv3 License' and timm's 'fastvit-license'
_OWN = re.compile(r'\blicen[cs]e\b', re.IGNORECASE)


@lru_cache(maxsize=None)
def tell_licence(name: str, licence: str) -> None:
    """Logs the licence of weights if it forbids commercial use or is the publisher's own, once in a process."""
    if _NON_COMMERCIAL.search(licence):
        end = 'does not allow commercial use'
    elif _OWN.search(licence):
        end = "is the publisher's own: read its terms before you use them"
    else:
        return
    from mmengine.logging import print_log  # imported here, so that listing the catalogue needs no OpenMMLab package
    print_log(f'{name}: the licence of these weights, {one_line(licence)}, {end}', logger='current')
