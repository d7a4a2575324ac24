import pytest

from mmlk._require import require


def test_what_is_there_is_fine():
    require('json', 'os.path')


def test_what_is_missing_is_named_with_the_command_that_mends_it():
    message = "(?s)needs json, not_there, but importing 'not_there'.*install.sh"
    with pytest.raises(ImportError, match=message) as caught:
        require('json', 'not_there')
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_broken_package_is_named_with_its_own_error(tmp_path, monkeypatch):
    (tmp_path / 'broken_package.py').write_text('raise OSError("libfoo.so: undefined symbol")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match='OSError: libfoo.so: undefined symbol'):
        require('broken_package')
