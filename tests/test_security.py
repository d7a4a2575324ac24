"""What no line of ours may do, read in its syntax tree; and what weights may come over."""
import ast
import io
import logging
import re
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from mmlk._text import one_line, printable
from mmlk.cli import prepare
from mmlk.studies.compare import read_study
from mmlk.weights import WeightsError
from mmlk.weights.catalog import CATALOG

REPO = Path(__file__).resolve().parent.parent
FILES = sorted(path for folder in ('mmlk', 'tools', 'configs') for path in (REPO / folder).rglob('*.py')
               if '.mim' not in path.parts)
CALLS = {
    'eval', 'exec', 'compile', '__import__', 'os.system', 'os.popen', 'subprocess.getoutput',
    'subprocess.getstatusoutput', 'pickle.load', 'pickle.loads', 'pickle.Unpickler', 'marshal.loads', 'shelve.open',
    'joblib.load', 'yaml.unsafe_load',
    'yaml.full_load', 'torch.hub.load', 'tempfile.mktemp', 'ssl._create_unverified_context',
    # archives are read in place, never unpacked; if one ever is, its paths have to be checked
    'extractall', 'extract', 'shutil.unpack_archive',
}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f'{dotted(node.value)}.{node.attr}'
    return node.id if isinstance(node, ast.Name) else '?'


def faults(source: str) -> list:
    """(line, what is wrong) in a program."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        call, given = dotted(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        value = {key: getattr(part, 'value', None) for key, part in given.items()}
        if call in CALLS or call.rpartition('.')[2] in ('extractall', 'extract'):
            found.append((node.lineno, call))
        if call == 'torch.load' and value.get('weights_only') is not True:
            found.append((node.lineno, 'torch.load without weights_only=True'))
        if value.get('weights_only') is False or value.get('allow_pickle') is True:
            found.append((node.lineno, 'weights_only=False or allow_pickle=True'))
        if call == 'np.load' and 'allow_pickle' in given:
            found.append((node.lineno, 'np.load of pickles'))
        loaders = [*node.args[1:], *given.values()]
        if call == 'yaml.load' and not any(dotted(loader).endswith('SafeLoader') for loader in loaders):
            found.append((node.lineno, 'yaml.load; safe_load'))
        if 'shell' in given and value['shell'] is not False:
            found.append((node.lineno, 'a shell'))
        if value.get('verify') is False or 'context' in given and call.endswith('urlopen'):
            found.append((node.lineno, 'certificates not verified'))
    return found


@pytest.mark.parametrize('folder', ['mmlk', 'tools', 'configs'])
def test_nothing_of_ours_runs_input(folder):
    files = [path for path in FILES if path.relative_to(REPO).parts[0] == folder]
    assert len(files) > 10
    wrong = {f'{path}:{line}': what for path in files
             for line, what in faults(path.read_text())}
    assert not wrong


@pytest.mark.parametrize('line', [
    'eval(text)', 'exec(text)', 'os.system(text)', 'subprocess.run(text, shell=True)', 'torch.load(path)',
    'torch.load(path, weights_only=False)', 'read(path, allow_pickle=True)', 'yaml.load(text, yaml.Loader)',
    'archive.extractall(folder)', 'pickle.load(file)', 'subprocess.Popen(a, shell=flag)',
    'np.load(p, allow_pickle=True)'])
def test_the_check_finds_them(line):
    assert faults(line)


def test_only_the_allow_list_imports_by_name():
    """importlib with a name that is not in the source: allow_pickle's types, which a person asked for; the modules of
    a package, commands, and the datasets of OpenMMLab's packages."""
    users = {path.relative_to(REPO).as_posix() for path in FILES for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and dotted(node.func).rpartition('.')[2] == 'import_module'
             and not isinstance(node.args[0], ast.Constant)}
    assert users <= {'mmlk/weights/read.py', 'mmlk/_require.py', 'mmlk/backbones/__init__.py', 'mmlk/cli/__init__.py',
                     'mmlk/cli/doctor.py', 'mmlk/datasets/check.py'}


def test_weights_come_over_https():
    """All of the catalogue; where the publisher put a sha256 into the name, it is checked by it (test_fetch.py)."""
    assert all(entry.url.startswith('https://') for entry in CATALOG.values())
    assert all(re.fullmatch('[0-9a-f]{8,64}', entry.sha256) for entry in CATALOG.values() if entry.sha256)


HOSTILE = 'a\x1b[2Jb\x9b31m\u202ec\ud800\r\b\0'
SHOWN = r'a\x1b[2Jb\x9b31m\u202ec\ud800\r\x08\x00'


def test_text_of_files_is_printable():
    assert printable(f'é\t{HOSTILE}\n漢') == f'é\t{SHOWN}\n漢' and one_line(f'{HOSTILE}\n') == SHOWN + r'\n'


def test_errors_and_logs_show_no_control_codes(capsys):
    assert str(WeightsError(HOSTILE)) == SHOWN
    with pytest.raises(SystemExit):
        prepare.fail(HOSTILE)
    assert capsys.readouterr().err == f'error: {SHOWN}\n'
    before, stream = logging.getLogRecordFactory(), io.StringIO()
    logger = MMLogger.get_instance('printable')
    logger.handlers = [logging.StreamHandler(stream)]
    try:
        prepare.guard_logs()
        # as mmengine tells of names that it has no place for
        load_state_dict(nn.Linear(1, 1), {HOSTILE: torch.ones(1)}, logger=logger)
        logger.warning('%s', HOSTILE)
    finally:
        logging.setLogRecordFactory(before)
    assert f'unexpected key in source state_dict: {SHOWN}' in stream.getvalue()
    assert not (set(HOSTILE) - set(SHOWN)) & set(stream.getvalue())


def test_a_study_is_printable(tmp_path):
    quoted = r'"\e[2J\u202e"'
    (tmp_path / 's.yml').write_text(''.join(f'{key}: {quoted}\n' for key in ('title', 'finding', 'source'))
                                    + f'configs: {{{quoted}: a.py}}')
    study = read_study(tmp_path / 's.yml')
    assert {study.title, study.finding, study.source, *study.configs} == {r'\x1b[2J\u202e'}


def test_shell_scripts_evaluate_no_text():
    scripts = sorted((REPO / 'tools').glob('*.sh'))
    evaluated = re.compile(r'\beval\s|\b(ba)?sh -c\b|\| *(ba)?sh\b')
    assert scripts and not [path for path in scripts if evaluated.search(path.read_text())]
