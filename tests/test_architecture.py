"""What may import what: arrows point down only, and a heavy toolbox is never imported for the sake of an operator."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / 'mmlk'
# From the bottom: each room may import from itself, from the rooms before it, and from the private modules beside them.
ROOMS = ['ops', 'reparam', 'registry', 'layers', 'backbones', 'weights', 'classification', 'preprocessors', 'heads',
         'datasets', 'engine', 'analysis', 'evaluation', 'deploy', 'predict', 'studies', 'cli', '__main__']
PRIVATE = {path.stem for path in PACKAGE.glob('_*.py')} - {'__main__'}


def imports(path, top_level_only):
    """Absolute names that a file imports, with ``from . import`` resolved."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    package = ('mmlk', *path.relative_to(PACKAGE).parts[:-1])
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
            module = '.'.join(part for part in (base, node.module) if part)
            if module == 'mmlk':  # from mmlk import room
                yield from (f'mmlk.{alias.name}' for alias in node.names if not alias.name.startswith('__version'))
            else:
                yield module


def files(*rooms):
    for room in rooms:
        yield from [PACKAGE / f'{room}.py'] if (PACKAGE / f'{room}.py').exists() else (PACKAGE / room).rglob('*.py')


def test_ops_and_reparam_are_pure_torch():
    for path in files('ops', 'reparam'):
        foreign = {name.split('.')[0] for name in imports(path, top_level_only=False)} - set(sys.stdlib_module_names)
        allowed = {'torch', 'mmlk', 'triton'} if path.parent.name == 'backends' else {'torch', 'mmlk'}
        assert foreign <= allowed, f'{path} imports {foreign}'


@pytest.mark.parametrize('room', ROOMS)
def test_arrows_point_down(room):
    allowed = {*ROOMS[:ROOMS.index(room) + 1], *(set() if room in ('ops', 'reparam') else PRIVATE)}
    for path in files(room):
        for name in imports(path, top_level_only=False):
            if name.startswith('mmlk.'):
                assert name.split('.')[1] in allowed, f'{path} imports {name}'


def test_private_modules_import_no_room():
    for path in files(*sorted(PRIVATE)):
        for name in imports(path, top_level_only=False):
            assert not name.startswith('mmlk.') or name.split('.')[1] in PRIVATE, f'{path} imports {name}'


def test_every_module_is_in_a_room():
    there = {path.stem for path in PACKAGE.glob('*.py')} | {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
    assert there == {*ROOMS, *PRIVATE}


def test_no_toolbox_at_import_time():
    for path in PACKAGE.rglob('*.py'):
        for name in imports(path, top_level_only=True):
            assert name.split('.')[0] not in ('mmdet', 'mmpretrain', 'mmseg'), f'{path} imports {name}'


def test_importing_the_operator_imports_no_toolbox():
    code = ('import sys, mmlk.ops, mmlk.reparam; '
            'heavy = {"mmengine", "mmcv", "mmdet", "mmseg", "timm", "triton"}; '
            'print(sorted({n.split(".")[0] for n in sys.modules} & heavy))')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


@pytest.mark.parametrize('toolbox', ['mmseg', 'mmdet'])
def test_scoped_name_builds_with_nothing_imported_by_hand(toolbox):
    code = (f'from {toolbox}.registry import MODELS; from mmengine.registry import init_default_scope; '
            f'init_default_scope("{toolbox}"); arch = dict(large_kernel_sizes=[7], layers=[1], channels=[8]); '
            'net = MODELS.build(dict(type="mmlk.RepLKNet", arch=arch, out_indices=[0])); print(type(net).__module__)')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'mmlk.backbones.replknet', done.stderr[-2000:]
