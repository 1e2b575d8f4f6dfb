"""Downloads against a server on the loopback interface: whole, resumed, changed, damaged; and unsafe archives."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.prepare.sources import archives as download
from bigrec_hf.prepare.sources.archives import download_movielens, unpack
from bigrec_hf.prepare.stage import main
from bigrec_hf.settings import PrepareSettings


def make_zip(members, mode=None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, text in members.items():
            info = zipfile.ZipInfo(name)
            if mode is not None:
                info.external_attr = mode << 16
            file.writestr(info, text)
    return buffer.getvalue()


RATINGS = "".join(f"1::{i}::4::{100 + i}\n" for i in range(1, 15))
MOVIES = "".join(f"{i}::Film {i} (1999)::Drama\n" for i in range(1, 15))
ARCHIVE = make_zip({"ml-1m/ratings.dat": RATINGS, "ml-1m/movies.dat": MOVIES, "ml-1m/users.dat": "1::F\n" * 500})


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut` bytes an answer at most while `cuts` last; honours Range with If-Range."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.cut, self.cuts = {}, [], 0, 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.server.files.get(self.path)
        self.server.requests.append((self.path, self.headers.get("Range")))
        if body is None:
            self.send_error(404)
            return
        if isinstance(body, int):
            self.send_error(body)
            return
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == tag:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        part = body[start:]
        if self.server.cuts > 0 and self.path.endswith(".zip"):
            self.server.cuts -= 1
            part = part[: self.server.cut]
        self.wfile.write(part)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Server()
    server.files = {
        "/ml-1m.zip": ARCHIVE,
        "/ml-1m.zip.md5": f"MD5 (ml-1m.zip) = {hashlib.md5(ARCHIVE).hexdigest()}\n".encode(),
    }
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv(download.URL_VARIABLE, f"http://127.0.0.1:{server.server_address[1]}/")
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_an_archive_is_fetched_verified_and_unpacked_once(server, tmp_path):
    folder = download_movielens("1m", tmp_path)
    assert folder == tmp_path / "ml-1m"
    assert (folder / "ratings.dat").read_text() == RATINGS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ml-1m", "ml-1m.zip"]
    n_requests = len(server.requests)
    assert download_movielens("1m", tmp_path) == folder
    assert len(server.requests) == n_requests


def test_a_broken_connection_is_resumed_where_it_stopped(server, tmp_path):
    server.cut, server.cuts = 1000, 2
    download_movielens("1m", tmp_path)
    ranges = [asked for path, asked in server.requests if path == "/ml-1m.zip"]
    assert ranges == [None, "bytes=1000-", "bytes=2000-"]


def test_a_killed_run_is_resumed_by_the_next(server, tmp_path):
    tag = f'"{hashlib.md5(ARCHIVE).hexdigest()}"'
    (tmp_path / "ml-1m.zip.part").write_bytes(ARCHIVE[:777])
    (tmp_path / "ml-1m.zip.part.etag").write_text(tag)
    download_movielens("1m", tmp_path)
    assert ("/ml-1m.zip", "bytes=777-") in server.requests
    assert (tmp_path / "ml-1m.zip").read_bytes() == ARCHIVE


@pytest.mark.parametrize("part", [b"another file", ARCHIVE, ARCHIVE + b"more"])
def test_a_part_of_another_file_is_thrown_away(server, tmp_path, part):
    (tmp_path / "ml-1m.zip.part").write_bytes(part)
    tag = '"old"' if part == b"another file" else f'"{hashlib.md5(ARCHIVE).hexdigest()}"'
    (tmp_path / "ml-1m.zip.part.etag").write_text(tag)
    download_movielens("1m", tmp_path)
    assert (tmp_path / "ml-1m.zip").read_bytes() == ARCHIVE


def test_a_wrong_checksum_removes_the_download(server, tmp_path):
    server.files["/ml-1m.zip.md5"] = ("0" * 32 + "  ml-1m.zip\n").encode()
    with pytest.raises(BigrecError, match=r"md5 is .*, but 0{32} was published: the download was removed"):
        download_movielens("1m", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_server(server, tmp_path):
    with pytest.raises(BigrecError, match=r"ml-latest-small\.zip: the server returned 404"):
        download_movielens("ml-latest-small", tmp_path)  # without a published checksum
    server.files["/ml-latest-small.zip"] = 503
    with pytest.raises(BigrecError, match=r"cannot be downloaded .*503.*run again"):
        download_movielens("ml-latest-small", tmp_path)
    server.files["/ml-1m.zip.md5"] = b"<html>"
    with pytest.raises(BigrecError, match="instead of an md5 checksum"):
        download_movielens("1m", tmp_path)
    del server.files["/ml-1m.zip.md5"]
    with pytest.raises(BigrecError, match=r"ml-1m.zip.md5: cannot be downloaded"):
        download_movielens("1m", tmp_path)
    with pytest.raises(BigrecError, match="unknown archive '5m'"):
        download_movielens("5m", tmp_path)
    with pytest.raises(BigrecError, match="raw_dir is not set"):
        download_movielens("1m", None)


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil", "ml/../../evil", "ml\\..\\evil", "C:/evil"])
def test_unsafe_members_are_refused_before_anything_is_written(tmp_path, name):
    archive = tmp_path / "ml-1m.zip"
    archive.write_bytes(make_zip({"ml-1m/good.txt": "good", name: "bad"}))
    with pytest.raises(BigrecError, match="unsafe member"):
        unpack(archive, tmp_path)
    assert list(tmp_path.iterdir()) == [archive]


def test_links_several_folders_and_broken_archives_are_refused(tmp_path):
    archive = tmp_path / "a.zip"
    archive.write_bytes(make_zip({"ml/link": "/etc/passwd"}, mode=0o120777))
    with pytest.raises(BigrecError, match="unsafe member 'ml/link'"):
        unpack(archive, tmp_path)
    archive.write_bytes(make_zip({"a/x": "1", "b/y": "2"}))
    with pytest.raises(BigrecError, match="expected one folder inside, found a, b"):
        unpack(archive, tmp_path)
    archive.write_bytes(ARCHIVE[:500])
    with pytest.raises(BigrecError, match="the archive is broken"):
        unpack(archive, tmp_path)
    archive.write_bytes(make_zip({"ml/x": "12"}))
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml/x").write_text("mine")
    with pytest.raises(BigrecError, match="exists but differs"):
        unpack(archive, tmp_path)
    assert (tmp_path / "ml/x").read_text() == "mine"


def with_header(data, value, at=24, n_bytes=4):
    """The archive with another uncompressed size, or field at `at`, of its first member in the central directory."""
    start = data.index(b"PK\x01\x02") + at
    return data[:start] + value.to_bytes(n_bytes, "little") + data[start + n_bytes :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda zip: with_header(zip, 3_000_000_000), "claims an impossible size: nothing was unpacked"),
        (lambda zip: with_header(zip, 1), "is damaged or of another kind"),
        (lambda zip: zip[:200] + b"\0" * 50 + zip[250:], "is damaged or of another kind"),
        (lambda zip: zip.replace(b"\x08\x00", b"\x63\x00"), "damaged|broken"),  # an unknown compression
        (lambda zip: with_header(zip, 1, at=8, n_bytes=2), "damaged"),  # encrypted
        (lambda zip: b"", "broken"),
    ],
    ids=["bomb", "smaller", "bytes", "method", "encrypted", "empty"],
)
def test_damaged_members_leave_nothing_behind(tmp_path, change, message):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("ml/a.csv", "".join(f"{i * 7919 % 1000},{i}\n" for i in range(500)))
        file.writestr("ml/b.csv", "x")
    archive = tmp_path / "ml.zip"
    archive.write_bytes(change(buffer.getvalue()))
    with pytest.raises(BigrecError, match=message):
        unpack(archive, tmp_path)
    assert list(tmp_path.iterdir()) == [archive]


def test_a_disk_without_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    archive = tmp_path / "ml-1m.zip"
    archive.write_bytes(ARCHIVE)
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(BigrecError, match="has 1,000 free: make room"):
        unpack(archive, tmp_path)
    assert list(tmp_path.iterdir()) == [archive]


def test_a_member_that_occurs_twice_is_refused(tmp_path):
    archive = tmp_path / "ml.zip"
    with zipfile.ZipFile(archive, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("ml/a", "1")
        file.writestr("ml/a", "2")
    with pytest.raises(BigrecError, match="'ml/a' occurs twice"):
        unpack(archive, tmp_path)


def test_a_body_in_chunks_that_ends_too_early_is_no_traceback(server, tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")

    def chunked(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"400\r\n" + b"x" * 100)
        self.close_connection = True

    monkeypatch.setattr(Handler, "do_GET", chunked)
    for name in ("1m", "ml-latest-small"):
        with pytest.raises(BigrecError, match=r"cannot be downloaded \(.*IncompleteRead"):
            download_movielens(name, tmp_path)


def test_prepare_downloads_first_when_asked(server, tmp_path):
    main(PrepareSettings(download="1m", raw_dir=str(tmp_path / "raw"), prepared_dir=str(tmp_path / "set")))
    facts = json.loads((tmp_path / "set/facts.json").read_text())
    assert (facts["name"], facts["encoding"], facts["examples"]["test"]) == ("ml-1m", "latin-1", 1)
    assert facts["licence"]["redistribution"] == "forbidden"
