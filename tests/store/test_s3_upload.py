"""Large files in S3: in parts, once, and whichever answer gets lost; against moto, and where they differ, Ceph."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dpr.errors import StoreError
from dpr.store import s3_upload
from dpr.store.s3_upload import CHUNK_BYTES, S3Upload
from tests.services import fault_proxy
from tests.services.endpoint import S3Endpoint
from tests.store.s3_rig import Rig, rig_before

LARGE = bytes(range(256)) * (10 * CHUNK_BYTES // 256 // 4)
"""Two whole parts and a half."""
OTHER = LARGE[::-1]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "large").write_bytes(LARGE)
    return tmp_path / "large"


@pytest.fixture
def nanio_rig(nanio_endpoint: S3Endpoint) -> Iterator[Rig]:
    """A server that knows no conditions, and no upload any more that was completed."""
    with rig_before(nanio_endpoint) as rig:
        yield rig


class Refuser:
    """Make the server behind a proxy refuse completions that carry a condition, as servers do that differ from moto."""

    def __init__(self, status: int, code: str, *, lost_first: bool = False) -> None:
        self.refusals = 0
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
        waiting = [lost_first]
        refuser = self

        class Handler(fault_proxy._Handler):
            def do_POST(self) -> None:
                if "If-None-Match" not in self.headers:
                    self._handle()
                    return
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if waiting.pop() if waiting else False:
                    self.close_connection = True
                    self._forward(sent, None)  # it is carried out, and its answer gets lost
                else:
                    refuser.refusals += 1
                    self._answer(status, body)

        self._handler = Handler

    def install(self, proxy: fault_proxy.FaultProxy) -> None:
        proxy._server.RequestHandlerClass = self._handler


@pytest.mark.parametrize(("size_bytes", "requests"), [(CHUNK_BYTES, ["PUT"]), (CHUNK_BYTES + 1, None)])
def test_what_fits_goes_in_one_request(rig: Rig, tmp_path: Path, size_bytes: int, requests: list[str] | None) -> None:
    (tmp_path / "file").write_bytes(LARGE[:size_bytes])
    assert rig.store.put_file_if_absent("a", tmp_path / "file") is True
    assert rig.methods() == (requests or ["GET", "POST", "PUT", "PUT", "POST"])
    assert rig.objects() == {"a": LARGE[:size_bytes]}


def test_no_more_parts_than_a_server_takes(rig: Rig, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_upload, "MAX_PARTS", 2)
    assert rig.store.put_file_if_absent("large", large) is True
    assert rig.methods().count("PUT") == 2
    assert rig.objects() == {"large": LARGE}


def test_an_object_that_is_there_is_not_sent_again(either_rig: Rig, large: Path) -> None:
    assert either_rig.store.put_file_if_absent("large", large) is True
    either_rig.proxy.requests.clear()
    assert either_rig.store.put_file_if_absent("large", large) is False
    assert either_rig.methods() == ["GET"]


def test_a_completed_upload_whose_answer_got_lost_is_its_own(either_rig: Rig, large: Path) -> None:
    either_rig.proxy.fail("POST", "pass")
    either_rig.proxy.fail("POST", "lose answer")
    assert either_rig.store.put_file_if_absent("large", large) is True
    assert either_rig.methods().count("POST") == 3
    assert either_rig.objects() == {"large": LARGE}
    assert either_rig.unfinished_uploads() == []


def test_the_same_where_the_server_forgets_completed_uploads(nanio_rig: Rig, large: Path) -> None:
    nanio_rig.proxy.fail("POST", "pass")
    nanio_rig.proxy.fail("POST", "lose answer")
    assert nanio_rig.store.put_file_if_absent("large", large) is True
    assert nanio_rig.methods()[-2:] == ["POST", "HEAD"]
    assert nanio_rig.objects() == {"large": LARGE}


def test_the_same_where_the_server_refuses_the_repeated_completion(moto_endpoint: S3Endpoint, large: Path) -> None:
    refuser = Refuser(412, "PreconditionFailed", lost_first=True)
    with rig_before(moto_endpoint, prepare=refuser.install) as rig:
        assert rig.store.put_file_if_absent("large", large) is True
        assert refuser.refusals == 1
        assert rig.objects() == {"large": LARGE}


@pytest.mark.parametrize("status", [400, 501])
def test_a_server_that_refuses_the_condition_gets_none(moto_endpoint: S3Endpoint, large: Path, status: int) -> None:
    refuser = Refuser(status, "NotImplemented")
    with rig_before(moto_endpoint, prepare=refuser.install) as rig:
        rig.proxy.fail("POST", "pass")
        rig.proxy.fail("POST", "lose answer")
        assert rig.store.put_file_if_absent("large", large) is True
        assert refuser.refusals == 2
        assert rig.objects() == {"large": LARGE}
        assert rig.unfinished_uploads() == []


def test_a_writer_that_is_overtaken_changes_nothing(either_rig: Rig) -> None:
    def read(start: int, length: int) -> bytes:
        if start == 0:  # the upload has begun
            either_rig.write("large", OTHER)
        return LARGE[start : start + length]

    upload = S3Upload(either_rig.store._bucket, "large", "object large")
    created = upload.put_in_parts_if_absent(len(LARGE), read)
    # a server that does not know the condition replaces the object whole; callers then store the same bytes
    assert created is not either_rig.knows_conditional_uploads
    assert either_rig.objects() == {"large": LARGE if created else OTHER}
    assert either_rig.unfinished_uploads() == []


def test_an_upload_that_somebody_removes_is_a_failure(ceph_rig: Rig) -> None:
    ceph_rig.reset()  # moto has no answer to this

    def read(start: int, length: int) -> bytes:
        for upload in ceph_rig.unfinished_uploads():
            ceph_rig.client.abort_multipart_upload(
                Bucket=ceph_rig.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        return LARGE[start : start + length]

    with pytest.raises(StoreError, match=r"^object large: .* NoSuchUpload .* was removed meanwhile; start again$"):
        S3Upload(ceph_rig.store._bucket, "large", "object large").put_in_parts_if_absent(len(LARGE), read)
    assert ceph_rig.objects() == {}


def test_an_upload_that_fails_leaves_nothing(rig: Rig, large: Path) -> None:
    rig.proxy.fail("PUT", "slow down", times=100_000)
    with pytest.raises(StoreError, match="overloaded"):
        rig.impatient_store.put_file_if_absent("large", large)
    assert rig.objects() == {}
    assert rig.unfinished_uploads() == []


class TestUnknownOutcome:
    """A put-if-absent may not return False to the writer that created the object, nor True to another."""

    def test_lost_answer_of_the_creator(self, either_rig: Rig) -> None:
        either_rig.proxy.fail("PUT", "lose answer")
        assert either_rig.store.put_if_absent("once", b"own") is True
        assert either_rig.methods() == ["PUT", "PUT", "HEAD"]
        assert either_rig.objects() == {"once": b"own"}

    def test_lost_answer_of_the_creator_from_a_file(self, either_rig: Rig, tmp_path: Path) -> None:
        (tmp_path / "small").write_bytes(b"own")
        either_rig.proxy.fail("PUT", "lose answer")
        assert either_rig.store.put_file_if_absent("once", tmp_path / "small") is True
        assert either_rig.store.put_file_if_absent("once", tmp_path / "small") is False
        assert either_rig.objects() == {"once": b"own"}

    def test_lost_answer_of_another_with_equal_bytes(self, either_rig: Rig) -> None:
        assert either_rig.store.put_if_absent("once", b"the same") is True
        either_rig.proxy.fail("PUT", "lose answer")
        assert either_rig.store.put_if_absent("once", b"the same") is False

    def test_all_answers_lost_but_the_last(self, either_rig: Rig) -> None:
        either_rig.proxy.fail("PUT", "lose answer", times=4)
        either_rig.proxy.fail("HEAD", "refuse", times=2)
        assert either_rig.store.put_if_absent("once", b"") is True
        assert either_rig.objects() == {"once": b""}

    def test_unknown_to_the_end(self, rig: Rig) -> None:
        rig.proxy.fail("PUT", "lose answer", times=100_000)
        with pytest.raises(StoreError, match=r"object once: the connection to \S+ broke after"):
            rig.impatient_store.put_if_absent("once", b"own")
        assert rig.objects() == {"once": b"own"}
