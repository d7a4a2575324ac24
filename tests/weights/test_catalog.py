import re

import pytest

from mmlk.backbones.replknet import ARCHS
from mmlk.weights.catalog import CATALOG


@pytest.mark.parametrize('name', CATALOG)
def test_entry(name):
    entry = CATALOG[name]
    assert entry.name == name and entry.arch in ARCHS
    assert entry.url.startswith('https://') and entry.licence and entry.source
    # XL was trained on pixels in -1..1, the others with ImageNet's statistics (official README, tip 1)
    assert (entry.mean == entry.std == (127.5, ) * 3) == (entry.arch == 'XL')
    assert re.sub(r'[-_]', '', name).startswith(('replknet', 'upernet', 'fcos', 'cascademaskrcnn'))
    assert f'replknet{entry.arch.lower()}' in name.replace('replknet-', 'replknet').replace('-22k', '')


def test_a_digest_or_a_page_for_every_file():
    """What can be verified is; what cannot can also be had by hand."""
    for entry in CATALOG.values():
        assert bool(entry.sha256) != bool(entry.page), entry.name
        if entry.sha256:
            assert re.fullmatch('[0-9a-f]{8}', entry.sha256) and f'-{entry.sha256}.pth' in entry.url


def test_no_two_entries_are_the_same_file():
    assert len({entry.url for entry in CATALOG.values()}) == len(CATALOG) == 21


def test_trained_models_are_named_as_their_configs(repo):
    configs = {path.stem for path in (repo / 'configs').glob('*.py')}
    trained = {entry.name for entry in CATALOG.values() if entry.holds != 'classifier'}
    assert len(trained) == 10 and trained <= configs
