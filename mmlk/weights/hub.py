"""Files of the Hugging Face Hub: ``hf-hub:owner/name/file``, by the package ``huggingface_hub`` and its cache."""
import re
from pathlib import Path
from typing import NamedTuple

from .errors import WeightsError

PREFIX = 'hf-hub:'
FORM = f'{PREFIX}owner/name/file, or {PREFIX}owner/name@revision/file'
INSTALL = 'pip install mmlk[hub] (or huggingface_hub)'
# References of the Hub that are not branches or tags contain slashes. Those in other names are written as %2F, as in
# the Hub's own addresses.
_SOURCE = re.compile(r'([^/@]+/[^/@]+)(?:@(refs/(?:pr/\d+|convert/\w+)|[^/]*))?(?:/(.*))?', re.DOTALL)
_NAME = re.compile(r'[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?')


class HubFile(NamedTuple):
    """A file on the Hub.

    Args:
        repo: ``owner/name``.
        file: Path in the repository, with slashes.
        revision: Branch, tag, commit or reference such as ``refs/pr/1``.
    """
    repo: str
    file: str
    revision: str


def check_repo(repo: str) -> None:
    """Raises WeightsError if ``repo`` is not an ``owner/name`` that the Hub accepts."""
    parts = repo.split('/')
    if len(parts) != 2 or not all(map(_NAME.fullmatch, parts)) or '..' in repo or '--' in repo or len(repo) > 96 \
            or repo.endswith('.git'):
        raise WeightsError(f'{repo!r} is no repository of the Hugging Face Hub: write owner/name, with letters, '
                           'digits, -, _ and single dots')


def parse_hub(source: str) -> HubFile:
    """Splits a source that begins with ``hf-hub:``.

    Raises:
        WeightsError: It is not of the form ``hf-hub:owner/name[@revision]/file``, or would lead out of the cache.
    """
    match = _SOURCE.fullmatch(source[len(PREFIX):])
    if not match:
        raise WeightsError(f'{source!r} is not of the form {FORM}')
    repo, revision, file = match[1], match[2], match[3]
    check_repo(repo)
    if not file:
        raise WeightsError(f'{source!r} names no file: write {FORM}')
    revision = 'main' if revision is None else re.sub('%2f', '/', revision, flags=re.IGNORECASE)
    for what, path in (('revision', revision), ('file', file)):
        parts = path.split('/')
        if '\\' in path or not path.isprintable() or any(part in ('', '.', '..') for part in parts):
            raise WeightsError(f'{source!r}: {path!r} cannot be the {what}; write {FORM}')
    return HubFile(repo, file, revision)


def download_from_hub(source: str) -> Path:
    """Returns the path of a file of the Hub in the cache of ``huggingface_hub``; downloads it if needed.

    ``HF_HOME`` sets the cache's place, ``HF_TOKEN`` the token, and with ``HF_HUB_OFFLINE=1`` only the cache is used.

    Raises:
        WeightsError: The source is malformed, ``huggingface_hub`` is not installed, or the file cannot be had.
    """
    wanted = parse_hub(source)
    try:
        from huggingface_hub import constants, errors, hf_hub_download
    except ImportError as error:
        raise WeightsError(f'{source} needs a package that is not installed: {INSTALL}') from error
    try:
        path = Path(hf_hub_download(wanted.repo, wanted.file, revision=wanted.revision, library_name='mmlk'))
    except Exception as error:  # of several libraries
        if constants.HF_HUB_OFFLINE:
            reason = f'it is not in the cache, {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set'
        elif isinstance(error, errors.GatedRepoError):
            reason = 'its owner grants access on request; ask on its page, then log in with `hf auth login`'
        elif isinstance(error, errors.RepositoryNotFoundError):
            reason = f'there is no repository {wanted.repo}, or it is private: log in with `hf auth login`'
        elif isinstance(error, errors.RevisionNotFoundError):
            reason = f'{wanted.repo} has no revision {wanted.revision}'
        elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            reason = f'{wanted.repo} has no file {wanted.file} at revision {wanted.revision}'
        else:
            reason = first_line(error)
        raise WeightsError(f'{source} cannot be had: {reason}') from error
    if not path.is_file():
        raise WeightsError(f'{source} is a folder; give a file in it')
    return path


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message; its type if there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
