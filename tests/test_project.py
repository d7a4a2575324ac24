"""The project's own files: lint, types, continuous integration, versions, the table of markers, the notebook."""
import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import MARKERS

REPO = Path(__file__).resolve().parent.parent
VERSION = re.search("__version__ = '(.+)'", (REPO / 'mmlk/__init__.py').read_text())[1]
PINS = dict(re.findall(r'^([\w-]+)==(\S+)', (REPO / 'requirements.txt').read_text(), re.MULTILINE))
WORKFLOWS = sorted((REPO / '.github/workflows').glob('*.yml'))


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f'{module} is not installed')


def run(*command):
    settings = {key: value for key, value in os.environ.items() if key != 'PYTEST_ADDOPTS'}
    return subprocess.run([sys.executable, '-m', *command], cwd=REPO, capture_output=True, text=True, env=settings)


@needs('ruff')
def test_lint_finds_nothing():
    done = run('ruff', 'check', '--no-cache', '--output-format', 'concise', '.')
    assert done.returncode == 0, done.stdout + done.stderr


@needs('mypy')
def test_types_hold(tmp_path):
    done = run('mypy', '--cache-dir', str(tmp_path))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr


def test_the_strict_rooms_are_strict():
    """mypy's configuration names the rooms and leaves no file of the package out, and no file asks to be left out."""
    settings = tomllib.loads((REPO / 'pyproject.toml').read_text())['tool']['mypy']
    overrides = settings['overrides']
    assert settings['files'] == ['mmlk'] and settings['check_untyped_defs'] and 'exclude' not in settings
    assert not [o for o in (settings, *overrides) if o.get('ignore_errors')]
    [strict] = [o for o in overrides if o['module'] == ['mmlk.ops.*', 'mmlk.reparam.*', 'mmlk.weights.*']]
    assert all(strict[flag] for flag in ('disallow_untyped_defs', 'disallow_any_generics', 'strict_optional'))
    for path in (REPO / 'mmlk').rglob('*.py'):
        assert not re.search('# mypy:|# type: ignore$', path.read_text(), re.MULTILINE), path


def steps(path):
    workflow = yaml.safe_load(path.read_text())
    assert True in workflow, f'{path.name} does not say when it runs'  # YAML 1.1 reads `on` as true
    for name, job in workflow['jobs'].items():
        assert job.get('timeout-minutes') and job['steps'], f'{path.name}: {name}'
        yield from job['steps']


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_files_that_exist_and_pinned_actions(path):
    used, ran = 0, 0
    for step in steps(path):
        assert ('uses' in step) != ('run' in step), step
        if 'uses' in step:
            assert re.fullmatch(r'[\w-]+/[\w.-]+@[0-9a-f]{40}', step['uses']), f'not pinned: {step["uses"]}'
            used += 1
        else:
            command, file, *_ = shlex.split(step['run'])
            assert command == 'bash' and (REPO / file).is_file(), step['run']
            ran += 1
    assert used and ran
    for line in path.read_text().splitlines():
        assert 'uses:' not in line or re.search(r'  # v\d+\.\d+\.\d+$', line), f'the version is not named: {line}'


def test_workflows_may_only_read_but_for_the_publisher():
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow['permissions'] == {'contents': 'read'}, path
        more = {name: job['permissions'] for name, job in workflow['jobs'].items() if 'permissions' in job}
        assert more == ({'publish': {'id-token': 'write'}} if path.name == 'release.yml' else {}), path
        assert 'secrets.' not in path.read_text()


def test_continuous_integration_runs_what_developers_run():
    commands = [step['run'] for step in steps(REPO / '.github/workflows/ci.yml') if 'run' in step]
    assert commands == ['bash .ci/run', 'bash .ci/run-classic']


def test_releases_are_checked_before_they_are_published():
    script = (REPO / 'tools/build_release.sh').read_text()
    assert script.index('-m build') < script.index('twine check --strict dist/*')
    jobs = yaml.safe_load((REPO / '.github/workflows/release.yml').read_text())['jobs']
    assert jobs['publish']['needs'] == 'build'


@pytest.mark.parametrize('tag, message', [
    ('v9.9.9', f'the tag is v9.9.9 and mmlk/__init__.py says {VERSION}'), ('9.9.9', 'the tag is 9.9.9')])
def test_a_tag_of_another_version_is_not_built(tag, message):
    done = subprocess.run(['bash', REPO / 'tools/build_release.sh', tag], capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr


@pytest.mark.parametrize('path', sorted((REPO / '.github/ISSUE_TEMPLATE').glob('*.yml')), ids=lambda path: path.name)
def test_issue_forms_are_forms(path):
    form = yaml.safe_load(path.read_text())
    if path.name == 'config.yml':
        assert set(form) <= {'blank_issues_enabled', 'contact_links'}
        return
    assert form['name'] and form['description'] and form['body']
    ids = [field['id'] for field in form['body'] if field['type'] != 'markdown']
    assert len(ids) == len(set(ids))
    for field in form['body']:
        assert field['type'] in {'checkboxes', 'dropdown', 'input', 'markdown', 'textarea'}
        assert field['type'] == 'markdown' or field['attributes']['label']


def test_hooks_of_pre_commit_have_the_pinned_versions():
    repos = yaml.safe_load((REPO / '.pre-commit-config.yaml').read_text())['repos']
    for repo in repos:
        assert repo['hooks'] and (repo['repo'] == 'local' or re.fullmatch(r'v\d+\.\d+\.\d+', repo['rev'])), repo
    hooks = {hook['id']: repo for repo in repos for hook in repo['hooks']}
    assert hooks['ruff-check']['rev'] == 'v' + PINS['ruff'] and 'mypy' in hooks
    extras = (REPO / 'pyproject.toml').read_text()
    for tool in ('ruff', 'mypy'):
        assert f'["{tool}=={PINS[tool]}"]' in extras


def test_the_changelog_begins_with_this_version():
    text = (REPO / 'CHANGELOG.md').read_text()
    sections = re.findall(r'^## (.*)$', text, re.MULTILINE)
    assert sections[0] == '[Unreleased]' and sections[1].startswith(f'[{VERSION}] - ')
    for section in sections[1:]:
        assert re.fullmatch(r'\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d', section), section
    kinds = set(re.findall(r'^### (.*)$', text, re.MULTILINE))
    assert kinds <= {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'}


def test_the_changelog_names_modules_that_exist():
    """The new names of what was renamed in this version."""
    section = (REPO / 'CHANGELOG.md').read_text().split(f'## [{VERSION}]')[1].split('\n## [')[0]
    rows = [line.split('|')[2] for line in section.splitlines() if line.startswith('| `')]
    names = [name for row in rows for name in re.findall(r'`(mmlk[\w.]+)`', row)]
    assert len(names) > 5
    for name in names:
        path = REPO / name.replace('.', '/')
        assert path.with_suffix('.py').is_file() or path.is_dir() or name == 'mmlk.weights.load', name


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPO / 'CITATION.cff').read_text())
    assert citation['cff-version'] == '1.2.0' and citation['authors'] and citation['title'] and citation['message']
    date = re.search(rf'^## \[{re.escape(VERSION)}\] - (.+)$', (REPO / 'CHANGELOG.md').read_text(), re.MULTILINE)[1]
    assert (citation['version'], str(citation['date-released']), citation['license']) == (VERSION, date, 'MIT')


def test_contributing_names_files_that_exist():
    text = (REPO / 'CONTRIBUTING.md').read_text()
    for target in re.findall(r'\]\((?!http|#)([^)#]+)', text):
        assert (REPO / target).exists() or not (REPO / target).parent.exists(), target
    for name in re.findall(r'`((?:mmlk|tools|tests|configs|docs)/[\w./-]+|\w+\.(?:txt|toml|md))`', text):
        assert (REPO / name).exists(), name
    rows = [line for line in text.splitlines() if line.startswith('|')]
    rooms = {name for line in rows for name in re.findall(r'`mmlk/([\w.]+)`', line)}
    packages = {path.parent.name for path in (REPO / 'mmlk').glob('[!_.]*/__init__.py')}
    assert packages <= rooms, f'CONTRIBUTING.md does not say what belongs into {packages - rooms}'


@pytest.mark.parametrize('marker', MARKERS)
def test_the_table_of_markers_names_tests_that_exist(marker):
    assert len(MARKERS[marker]) == len(set(MARKERS[marker]))
    for name in MARKERS[marker]:
        file, _, test = name.partition('::')
        tree = ast.parse((REPO / 'tests' / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert any(n.startswith('test_') for n in names) and (not test or test in names), name


def test_markers_are_registered_and_every_room_has_fast_tests():
    registered = set(re.findall(r'^    "(\w+): ', (REPO / 'pyproject.toml').read_text(), re.MULTILINE))
    assert registered == {*MARKERS, 'slow'}
    rooms = {path.parent.name for path in (REPO / 'mmlk').glob('[!_.]*/__init__.py')}
    tested = {path.name for path in (REPO / 'tests').iterdir() if path.name in rooms}
    assert {name.split('/')[0] for name in MARKERS['fast']} >= tested
    for name in MARKERS['fast']:
        assert name.split('::')[0] not in MARKERS['distributed']


def test_pytest_gives_the_markers_of_the_table(pytestconfig):
    """The table reaches the tests: with ``-m gpu`` pytest collects those of the table and no others."""
    done = run('pytest', '-q', '--collect-only', '-p', 'no:cacheprovider', '-p', 'no:xdist', '-m', 'gpu',
               'tests/ops/test_triton.py')
    collected = {line.split('[')[0].removeprefix('tests/') for line in done.stdout.splitlines() if '::' in line}
    assert collected == set(MARKERS['gpu']), done.stdout + done.stderr


def cells():
    return json.loads((REPO / 'examples/tour.ipynb').read_text())['cells']


def test_the_notebook_holds_no_outputs():
    code = [cell for cell in cells() if cell['cell_type'] == 'code']
    assert code and all(not cell['outputs'] and cell['execution_count'] is None for cell in code)
    for cell in code:
        ast.parse(''.join(cell['source']))


@pytest.mark.slow
@needs('nbclient')
@needs('ipykernel')
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    import nbformat
    from nbclient import NotebookClient
    notebook = nbformat.read(REPO / 'examples/tour.ipynb', as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name='python3', resources={'metadata': {'path': tmp_path}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 3
    text = ''.join(output.get('text', '') for output in outputs)
    assert float(re.search(r'mIoU (\d+\.\d)', text)[1]) > 30
    assert float(re.search(r'largest difference .*? (\d\S*)', text)[1]) < 1e-3
