"""What mmlk does to other packages when they are imported, and that it imports none of them itself."""
import importlib.util
import subprocess
import sys

import pytest

from mmlk import _after_import, _checkpoints

# mmengine 0.10.7 in the eyes of mmlk, whichever is installed
CODE = '''
import importlib.metadata, sys
version = importlib.metadata.version
importlib.metadata.version = lambda name: '0.10.7' if name == 'mmengine' else version(name)
'''
NAMES = '{pair[1] for pair in torch.serialization.get_safe_globals() if isinstance(pair, tuple)}'


@pytest.mark.skipif(_checkpoints._release('torch') < (2, 6), reason='torch < 2.6 lists no pairs')
@pytest.mark.parametrize('imports', [
    'import mmlk; heavy = {*sys.modules} & {"torch", "numpy", "mmengine"}; assert not heavy, heavy; import torch',
    'import torch; import mmlk'])
def test_types_of_mmengine_are_allowed_once_torch_is_imported(imports):
    code = f"{CODE}\n{imports}\nassert 'mmengine' not in sys.modules\nprint(*{NAMES})"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'mmengine.logging.history_buffer.HistoryBuffer' in done.stdout.split()


def test_a_module_that_another_finder_provides_is_seen(tmp_path, monkeypatch):
    """As that of an editable installation does, which stands behind Python's own on the list."""
    (tmp_path / 'elsewhere.py').write_text('value = 1')

    class Finder:

        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == 'a_package_elsewhere':
                return importlib.util.spec_from_file_location(name, tmp_path / 'elsewhere.py')

    seen = []
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path, Finder])
    monkeypatch.setattr(_after_import, '_actions', {})
    monkeypatch.delitem(sys.modules, 'a_package_elsewhere', raising=False)
    _after_import.after_import('a_package_elsewhere', lambda module: seen.append((module, module.value)))
    assert not seen
    import a_package_elsewhere
    assert seen == [(a_package_elsewhere, 1)]
    _after_import.after_import('a_package_elsewhere', lambda module: seen.append(module))
    assert seen[1:] == [a_package_elsewhere]
