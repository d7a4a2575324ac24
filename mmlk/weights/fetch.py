"""Finds the file for a path, URL, catalogue name, package or file of the Hugging Face Hub; downloads it once."""
import difflib
import errno
import hashlib
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Optional, Union
from urllib.parse import unquote, urlsplit

from filelock import FileLock
from rich.progress import (BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn,
                           TransferSpeedColumn)

from mmlk._licences import tell_licence

from . import catalog
from .catalog import Entry
from .errors import WeightsError
from .hub import PREFIX, download_from_hub
from .packages import PREFIX as PACKAGE
from .packages import find_in_package

TIMEOUT = 30.0  # seconds without data after which a connection is closed
ATTEMPTS = 4  # maximum number of consecutive connections without any data
PAUSE = 2.0  # seconds between attempts
_BLOCK = 1 << 20
# Servers whose file names end in the beginning of the sha256. Elsewhere, eight digits may be a date.
_PUBLISHERS = ('download.openmmlab.com', 'download.pytorch.org', 'mmassets.onedl.ai')
_DIGEST = re.compile(r'-(?!20\d{6}\.)([0-9a-f]{8,64})\.pth$')
_FULL = {errno.ENOSPC, getattr(errno, 'EDQUOT', errno.ENOSPC)}  # Windows has no EDQUOT


class _NotAFile(Exception):
    """The server has sent a web page in place of a file."""


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects, except from https to another protocol."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> Optional[urllib.request.Request]:
        if urlsplit(req.full_url).scheme == 'https' and urlsplit(newurl).scheme != 'https':
            raise urllib.error.URLError(f'redirected from https to {newurl}')
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _log(message: str) -> None:
    from mmengine.logging import print_log  # imported here, so that listing the catalogue needs no OpenMMLab package
    print_log(message, logger='current')


def cache_dir() -> Path:
    """Returns the folder of downloaded weights: ``$MMLK_HOME/weights``, or ``mmlk/weights`` in the user's cache."""
    home = os.environ.get('MMLK_HOME')
    cache = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
    return (Path(home) if home else cache / 'mmlk').expanduser() / 'weights'


def cache_path(entry: Entry) -> Path:
    """Returns the path of an entry's file in the cache. A file that a user puts there is used as well."""
    return cache_dir() / f'{entry.name}.pth'


def digest(path: Path) -> str:
    """Returns the sha256 of a file in hexadecimal."""
    sha = hashlib.sha256()
    with path.open('rb') as file:
        for block in iter(lambda: file.read(_BLOCK), b''):
            sha.update(block)
    return sha.hexdigest()


def published_digest(url: str) -> str:
    """Returns the beginning of the sha256 in a file name of OpenMMLab or torchvision; empty for other URLs."""
    parts = urlsplit(url)
    match = _DIGEST.search(parts.path) if parts.hostname in _PUBLISHERS else None
    return match.group(1) if match else ''


def find(source: Union[str, Path]) -> Path:
    """Returns the path of the file for a source of weights; downloads it if needed.

    Args:
        source: A path, an http(s) URL, a catalogue name, ``hf-hub:owner/name[@revision]/file``, or ``package:NAME`` for
            the file of weights in an installed Python package.

    Raises:
        WeightsError: There is no such file or name, or the download failed.
    """
    path, text = Path(source).expanduser(), str(source)
    if path.is_file():
        return path
    if text in catalog.CATALOG:
        return fetch(catalog.CATALOG[text])
    if path.is_dir():
        raise WeightsError(f'{path.absolute()} is a folder; give the file in it')
    if isinstance(source, str) and re.match(r'https?://', source, re.IGNORECASE):
        name = re.sub(r'[^\w.-]', '_', unquote(urlsplit(source).path).rsplit('/', 1)[-1]) or 'weights'
        # different servers may have different files with the same name
        target = cache_dir() / f'{hashlib.sha256(source.encode()).hexdigest()[:8]}-{name}'
        entry = next((entry for entry in catalog.CATALOG.values() if source in (entry.url, entry.page)), None)
        if entry:
            tell_licence(entry.name, entry.licence)
        return download(source, cache_path(entry) if entry else target, published_digest(source))
    if isinstance(source, str) and source.startswith(PREFIX):
        return download_from_hub(source)
    if isinstance(source, str) and source.startswith(PACKAGE):
        return find_in_package(source)
    near = difflib.get_close_matches(text.lower(), catalog.CATALOG, n=3)
    meant = f'Near names: {", ".join(near)}' if near else '`python tools/weights.py list` shows the names'
    raise WeightsError(f"no weights '{source}': there is no file {path.absolute()}, and the catalogue has no "
                       f'such name. {meant}')


def fetch(entry: Entry) -> Path:
    """Returns the path of an entry's file; downloads it if needed, and checks its sha256 if that is known.

    A licence that restricts the use of the file is logged, once in a process.

    Raises:
        WeightsError: The file cannot be downloaded, or is not the published one.
    """
    target = cache_path(entry)
    tell_licence(entry.name, entry.licence)
    try:
        return download(entry.url, target, entry.sha256)
    except WeightsError as error:
        if not entry.page:
            raise
        raise WeightsError(f'{error}\nDownload {entry.name} in a browser from {entry.page}, and pass its '
                           f'path or put it at {target}') from error


def download(url: str, target: Path, sha256: str = '') -> Path:
    """Downloads to ``target``. The data are first written to ``target.part``; a later call resumes an incomplete
    download.

    Args:
        url: An http or https URL; certificates are verified.
        target: The file to write. If it exists, it is checked and not downloaded again.
        sha256: The expected digest, or the beginning of it; empty for no check.

    Raises:
        WeightsError: There is no connection, the server returns an error or a web page, the disk is full, or the digest
            is not the expected one. The message says what to do.
    """
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(target.name + '.lock').touch()
        except OSError as error:
            raise WeightsError(f'{target.parent} cannot be written ({error}); set MMLK_HOME to a folder that '
                               'can') from error
        # if several processes of a machine start together, only one downloads
        with FileLock(str(target) + '.lock'):
            if not target.exists():
                part = Path(f'{target}.part')
                _receive(url, part, target, sha256)
                got = digest(part)
                if not got.startswith(sha256.lower()):
                    _discard(part)
                    raise WeightsError(f'{url} gave a file with sha256 {got}, not {sha256}...: damaged on '
                                       'the way, or not the published one. It was deleted; try again')
                os.replace(part, target)
                _discard(part)
                known = 'as published' if sha256 else 'no reference is known'
                _log(f'{target}: sha256 {got}, {known}')
    elif sha256 and not digest(target).startswith(sha256.lower()):
        raise WeightsError(f'{target} has another sha256 than the published {sha256}...; delete it to '
                           'download it again, or pass its path to use it as it is')
    return target


def _stamp(part: Path) -> Path:
    """Returns the path of the file that has the server's validator (see :func:`_version`) for ``part``."""
    return Path(f'{part}.version')


def _discard(part: Path) -> None:
    for path in (part, _stamp(part)):
        if path.exists():
            path.unlink()


def _receive(url: str, part: Path, target: Path, sha256: str) -> None:
    """Downloads to ``part``, with as many connections as needed."""
    _log(f'downloading {url} to {target}')
    failed = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _connect(url, part, bool(sha256))
        except _NotAFile as error:
            _discard(part)
            raise WeightsError(f'{url} answered with a web page, not a file (a log-in, a quota or a '
                               'virus-scan notice?)') from error
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the partial file is not the beginning of the file on the server
                _discard(part)
            elif error.code < 500 and error.code not in (408, 429):
                raise WeightsError(f'{url}: the server answered {error.code} {error.reason}') from error
            reason = f'the server answered {error.code} {error.reason}'
        except (OSError, HTTPException) as error:
            if getattr(error, 'errno', None) in _FULL:
                raise WeightsError(f'no room on the disk of {part.parent} for {url}; free some, or set '
                                   'MMLK_HOME to a folder on another disk') from error
            reason = str(getattr(error, 'reason', '') or error or type(error).__name__)
        after = part.stat().st_size if part.exists() else 0
        failed = 0 if after > before else failed + 1
        if failed >= ATTEMPTS:
            kept = f' {after:,} bytes are kept in {part}; the next call goes on from there.' if after else ''
            raise WeightsError(f'{url} cannot be downloaded: {reason}.{kept} Without a network, download it '
                               f'elsewhere and pass its path or put it at {target}')
        time.sleep(PAUSE)


def _connect(url: str, part: Path, verified: bool) -> None:
    """Opens one connection and downloads to ``part``; returns when it is complete, otherwise raises an error."""
    request = urllib.request.Request(url, headers={'User-Agent': 'mmlk', 'Accept-Encoding': 'identity'})
    stamp, have = _stamp(part), part.stat().st_size if part.exists() else 0
    version = stamp.read_text() if stamp.exists() else ''
    # resume only if a validator or a digest can show that both parts are from the same file
    if have and (version or verified):
        request.add_header('Range', f'bytes={have}-')
        if version:
            request.add_header('If-Range', version)
    with urllib.request.build_opener(_Redirect()).open(request, timeout=TIMEOUT) as response:
        now = _version(response)
        if response.status == 206 and ((version and now != version) or _first_byte(response) != have):
            _discard(part)
            raise ConnectionError('the file on the server changed')
        start = have if response.status == 206 else 0
        length = response.headers.get('Content-Length')
        total = start + int(length) if length else None
        if total and total - start > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, 'no room')
        block = response.read(_BLOCK)
        if start == 0 and ('text/html' in response.headers.get('Content-Type', '')
                           or re.match(rb'\s*<(!doctype|html)', block[:64], re.IGNORECASE)):
            raise _NotAFile
        stamp.write_text(now)
        with part.open('ab' if start else 'wb') as file, _progress() as progress:
            task = progress.add_task(part.stem, total=total, completed=start)
            while block:
                file.write(block)
                progress.update(task, advance=len(block))
                block = response.read(_BLOCK)
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f'the connection closed after {part.stat().st_size:,} of {total:,} bytes')


def _version(response: HTTPResponse) -> str:
    """Returns a validator for If-Range (RFC 9110, 13.1.5); empty if the server sends none."""
    tag = response.headers.get('ETag', '')
    return tag if tag and not tag.startswith('W/') else response.headers.get('Last-Modified', '')


def _first_byte(response: HTTPResponse) -> Optional[int]:
    """Returns the position of the first byte of a partial response; None if the server does not give it."""
    match = re.match(r'bytes (\d+)-', response.headers.get('Content-Range', ''))
    return int(match.group(1)) if match else None


def _progress() -> Progress:
    return Progress(TextColumn('{task.description}'), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                    TimeRemainingColumn())
