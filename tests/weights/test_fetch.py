import errno
import hashlib
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from mmlk.weights import WeightsError, fetch, load
from mmlk.weights.catalog import CATALOG, Entry
from tests.weights.conftest import assert_same


class Server(ThreadingHTTPServer):
    """Serves one body, with ranges and a validator as a real server; misbehaves where a test asks it to."""
    daemon_threads = True

    def __init__(self, body=b''):
        self.body, self.tag, self.kind = body, '"one"', 'application/octet-stream'
        self.cut = []  # one entry per request: how many bytes of it to send before the connection is dropped
        self.statuses, self.ranges = [], True  # statuses: one per request, in place of an answer
        self.seen = []  # the Range header of each request
        self.location = ''
        super().__init__(('127.0.0.1', 0), Handler)

    def handle_error(self, request, client_address):
        """A client that turns away mid-file is part of the play."""

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}/path/some%20model.pth?x=1'


class Handler(BaseHTTPRequestHandler):

    def do_GET(self):
        server = self.server
        wanted = self.headers.get('Range')
        server.seen.append(wanted)
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        if server.location:
            self.send_response(302)
            self.send_header('Location', server.location)
            return self.end_headers()
        same = self.headers.get('If-Range') in (None, server.tag)
        start = int(wanted[len('bytes='):-1]) if wanted and server.ranges and same else 0
        if start and start >= len(server.body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header('Content-Type', server.kind)
        self.send_header('Content-Length', str(len(server.body) - start))
        if server.tag:
            self.send_header('ETag', server.tag)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(server.body) - 1}/{len(server.body)}')
        self.end_headers()
        end = start + server.cut.pop(0) if server.cut else None
        self.wfile.write(server.body[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server(bytes(torch.randint(0, 256, (3_000_000, ), dtype=torch.uint8).tolist()))
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMLK_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(fetch, 'PAUSE', 0.0)
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / 'home' / 'weights'


def sha256(body):
    return hashlib.sha256(body).hexdigest()


def test_download_once(server, cache):
    path = fetch.find(server.url)
    assert path.parent == cache and path.name.endswith('-some_model.pth')
    assert path.read_bytes() == server.body
    assert fetch.find(server.url) == path and len(server.seen) == 1
    assert sorted(p.suffix for p in cache.iterdir()) == ['.lock', '.pth']


def test_a_dropped_connection_is_taken_up_again(server, cache):
    server.cut = [1_200_000, 700_000]
    path = fetch.download(server.url, cache / 'm.pth', sha256(server.body)[:8])
    assert path.read_bytes() == server.body
    assert server.seen == [None, 'bytes=1200000-', 'bytes=1900000-']


def test_a_later_call_goes_on_from_the_part(server, cache):
    server.cut = [1_000_000] + [0] * fetch.ATTEMPTS
    with pytest.raises(WeightsError, match='1,000,000 bytes are kept in .*the next call goes on') as error:
        fetch.download(server.url, cache / 'm.pth')
    assert f'put it at {cache / "m.pth"}' in str(error.value)
    assert (cache / 'm.pth.part').read_bytes() == server.body[:1_000_000] and not (cache / 'm.pth').exists()
    assert fetch.download(server.url, cache / 'm.pth').read_bytes() == server.body
    assert server.seen[-1] == 'bytes=1000000-'


@pytest.mark.parametrize('change', ['tag', 'no range', 'no tag', 'shorter'])
def test_halves_of_different_files_are_never_joined(server, cache, change):
    """After a part of the old file, the whole of the new one has to come."""
    server.cut = [1_000_000] + [0] * fetch.ATTEMPTS
    if change == 'no tag':
        server.tag = ''
    with pytest.raises(WeightsError):
        fetch.download(server.url, cache / 'm.pth')
    server.cut, server.body = [], server.body[::-1]
    if change == 'tag':
        server.tag = '"two"'
    elif change == 'no range':
        server.ranges = False
    elif change == 'shorter':
        server.body = server.body[:1000]
    assert fetch.download(server.url, cache / 'm.pth').read_bytes() == server.body


def test_a_server_that_ignores_if_range(server, cache):
    """It answers 206 with bytes of another version; the validator tells."""
    part = cache / 'm.pth.part'
    cache.mkdir(parents=True)
    part.write_bytes(b'\0' * 1000)
    (cache / 'm.pth.part.version').write_text('"zero"')
    server.tag = ''
    handler = Handler.do_GET

    def ignoring(self):
        del self.headers['If-Range']
        handler(self)
    server.RequestHandlerClass = type('Ignoring', (Handler, ), {'do_GET': ignoring})
    assert fetch.download(server.url, cache / 'm.pth').read_bytes() == server.body


def test_another_digest_is_an_error_and_leaves_nothing(server, cache):
    with pytest.raises(WeightsError, match=f'{sha256(server.body)}, not 12345678'):
        fetch.download(server.url, cache / 'm.pth', '12345678')
    assert [p.name for p in cache.iterdir()] == ['m.pth.lock']


def test_a_cached_file_is_checked_and_never_deleted(server, cache):
    cache.mkdir(parents=True)
    (cache / 'm.pth').write_bytes(b'mine')
    assert fetch.download(server.url, cache / 'm.pth', sha256(b'mine')[:8]) == cache / 'm.pth'
    with pytest.raises(WeightsError, match='delete it to download it again'):
        fetch.download(server.url, cache / 'm.pth', '12345678')
    assert (cache / 'm.pth').read_bytes() == b'mine' and not server.seen


@pytest.mark.parametrize('body, kind', [(b'<!DOCTYPE html><html>sign in</html>', 'application/octet-stream'),
                                        (b'anything', 'text/html; charset=utf-8')])
def test_a_web_page_is_not_a_file(server, cache, body, kind):
    server.body, server.kind = body, kind
    with pytest.raises(WeightsError, match='web page'):
        fetch.download(server.url, cache / 'm.pth')
    assert [p.name for p in cache.iterdir()] == ['m.pth.lock']


def test_a_web_page_from_drive_says_where_to_click(server, cache, monkeypatch):
    server.body = b'<html>Google Drive - Virus scan warning</html>'
    entry = Entry('some', '31B', server.url, 'classifier', '', '', (0, 0, 0), (1, 1, 1), 'MIT', 'x',
                  page='https://p')
    said = f'from https://p, and pass its path or put it at {cache / "some.pth"}'
    with pytest.raises(WeightsError, match=said):
        fetch.fetch(entry)


def test_errors_of_the_server(server, cache):
    server.statuses = [404]
    with pytest.raises(WeightsError, match='404'):
        fetch.download(server.url, cache / 'm.pth')
    assert len(server.seen) == 1
    server.statuses = [503, 503]
    assert fetch.download(server.url, cache / 'm.pth').read_bytes() == server.body


def test_no_connection(cache):
    server = Server()
    url = server.url
    server.server_close()
    with pytest.raises(WeightsError, match='cannot be downloaded: .*refused.*Without a network'):
        fetch.download(url, cache / 'm.pth')


def test_a_full_disk(server, cache, monkeypatch):
    class Full(io.FileIO):
        def write(self, block):
            raise OSError(errno.ENOSPC, 'No space left on device')

    opened = fetch.Path.open
    monkeypatch.setattr(fetch.Path, 'open', lambda self, mode='r', *args, **kwargs: (
        Full(self, 'w') if 'w' in mode and self.suffix == '.part' else opened(self, mode, *args, **kwargs)))
    with pytest.raises(WeightsError, match='no room on the disk .* MMLK_HOME'):
        fetch.download(server.url, cache / 'm.pth')
    assert len(server.seen) == 1


def test_more_than_the_disk_holds_is_not_begun(server, cache, monkeypatch):
    usage = fetch.shutil.disk_usage('.')
    monkeypatch.setattr(fetch.shutil, 'disk_usage', lambda path: usage._replace(free=2_999_999))
    with pytest.raises(WeightsError, match='no room on the disk'):
        fetch.download(server.url, cache / 'm.pth')
    assert not (cache / 'm.pth.part').exists()


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(WeightsError, match='cannot be written.*MMLK_HOME'):
        fetch.download(server.url, tmp_path / 'file' / 'm.pth')


def test_https_never_becomes_http():
    request = fetch.urllib.request.Request('https://example.org/m.pth')
    args = (request, None, 302, 'Found', {})
    with pytest.raises(OSError, match='redirected from https to http:'):
        fetch._Redirect().redirect_request(*args, 'http://example.org/m.pth')
    url = 'https://other.org/m.pth'
    assert fetch._Redirect().redirect_request(*args, url).full_url == url


def test_redirects_are_followed(server, cache):
    front = Server()
    front.location = server.url
    threading.Thread(target=front.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
    assert fetch.download(front.url, cache / 'm.pth').read_bytes() == server.body
    front.shutdown()
    front.server_close()


def test_processes_that_start_together_download_once(server, cache):
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch.find(server.url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and len(server.seen) == 1


@pytest.mark.parametrize('environment, expected', [
    ({'MMLK_HOME': '/a'}, '/a/weights'),
    ({'XDG_CACHE_HOME': '/b'}, '/b/mmlk/weights'),
    ({'HOME': '/c', 'USERPROFILE': '/c'}, '/c/.cache/mmlk/weights'),
])
def test_where_the_cache_is(monkeypatch, environment, expected):
    for name in ('MMLK_HOME', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert fetch.cache_dir() == fetch.Path(expected)


def test_a_folder_is_no_file_and_hides_no_name(server, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'replknet-31b_in1k'
    (tmp_path / name).mkdir()
    (tmp_path / 'work_dirs').mkdir()
    entry = Entry(**{**vars(CATALOG[name]), 'url': server.url, 'sha256': sha256(server.body)[:8]})
    monkeypatch.setitem(CATALOG, name, entry)
    assert fetch.find(name).read_bytes() == server.body
    with pytest.raises(WeightsError, match='work_dirs is a folder'):
        fetch.find('work_dirs')


@pytest.mark.parametrize('url, digest', [
    ('https://download.pytorch.org/models/resnet50-0676ba61.pth', '0676ba61'),
    ('https://download.openmmlab.com/pretrain/third_party/resnet50_v1c-2cccc1ad.pth?x=1', '2cccc1ad'),
    ('https://mmassets.onedl.ai/a/resnet101_v1c-e67eebb6.pth', 'e67eebb6'),
    ('https://download.openmmlab.com/a/model-20220317.pth', ''),  # a date
    ('https://download.openmmlab.com/mmediting/third_party/vgg_state_dict.pth', ''),
    ('https://elsewhere.org/download.pytorch.org/resnet50-0676ba61.pth', ''),
    ('https://download.pytorch.org.elsewhere.org/resnet50-0676ba61.pth', ''),
])
def test_digests_in_names(url, digest):
    assert fetch.published_digest(url) == digest


def test_a_url_with_a_digest_in_its_name_is_checked_by_it(server, cache, monkeypatch):
    monkeypatch.setattr(fetch, '_PUBLISHERS', ('127.0.0.1', ))
    place = f'http://127.0.0.1:{server.server_port}'
    assert fetch.find(f'{place}/m-{sha256(server.body)[:8]}.pth').read_bytes() == server.body
    with pytest.raises(WeightsError, match=f'{sha256(server.body)}, not 12345678'):
        fetch.find(f'{place}/m-12345678.pth')


def test_the_url_of_an_entry_is_kept_as_that_entry(server, cache, monkeypatch):
    name = 'replknet-31b_in1k'
    monkeypatch.setitem(CATALOG, name, Entry(**{**vars(CATALOG[name]), 'url': server.url, 'sha256': ''}))
    assert fetch.find(server.url) == cache / f'{name}.pth' == fetch.find(name) and len(server.seen) == 1


def test_a_source_that_is_nothing():
    with pytest.raises(WeightsError, match='no file .*no such name. Near names: replknet-31b_in1k'):
        fetch.find('replknet-31b-in1k')
    with pytest.raises(WeightsError, match='tools/weights.py list'):
        fetch.find('elsewhere/model.bin')
    with pytest.raises(WeightsError, match='no file'):
        fetch.find('ftp://example.org/m.pth')


def test_load_from_url_and_from_a_name(server, cache, trained, fresh, monkeypatch):
    file = io.BytesIO()
    torch.save({'model': trained.state_dict()}, file)
    server.body = file.getvalue()
    assert load(fresh, server.url).source == server.url
    assert_same(fresh.state_dict(), trained.state_dict())
    name = 'replknet-31b_in1k'
    entry = Entry(**{**vars(CATALOG[name]), 'url': server.url, 'sha256': sha256(server.body)[:8]})
    monkeypatch.setitem(CATALOG, name, entry)
    for parameter in fresh.parameters():
        parameter.data.zero_()
    report = load(fresh, name)
    assert (report.source, report.path) == (name, str(cache / f'{name}.pth'))
    assert_same(fresh.state_dict(), trained.state_dict())


@pytest.mark.parametrize('licence, told', [
    *((text, 'does not allow commercial use') for text in (
        'CC-BY-NC-4.0', 'cc-by-nc-sa-4.0', 'Non-commercial', 'research only', 'apple-amlr')),
    *((text, "is the publisher's own: read its terms before you use them") for text in (
        'DINOv3 License', 'dinov3-license', "Apple's own licence")),
    *((text, '') for text in ('MIT', 'MIT; conversion Apache-2.0', 'none stated', 'Inc. 2.0', ''))])
def test_a_licence_that_restricts_the_use_is_said_once(server, cache, monkeypatch, licence, told):
    """Also when the file is in the cache, and when its URL is given."""
    said = []
    monkeypatch.setattr('mmengine.logging.print_log', lambda message, **_: said.append(message))
    fetch.tell_licence.cache_clear()
    name = 'replknet-31b_in1k'
    entry = Entry(**{**vars(CATALOG[name]), 'url': server.url, 'sha256': '', 'licence': licence})
    monkeypatch.setitem(CATALOG, name, entry)
    for source in (server.url, name, name):
        fetch.find(source)
    expected = [f'{name}: the licence of these weights, {licence}, {told}']
    assert [line for line in said if 'the licence of' in line] == (expected if told else [])
