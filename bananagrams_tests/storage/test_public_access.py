"""A build writes to no bucket that anybody can read, unless its profile says that it may."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from botocore.config import Config

from bananagrams_assets.stages import stage
from bananagrams_assets.stages.stage import PublicStore, StageResult, run_stage
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.public_access import PROBE, who_can_read
from bananagrams_assets.storage.store import StoreError

from ..photos import profile_of, quiet
from ..weed import BUCKET, Weed

ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"
BLOCKED = "".join(
    f"<{rule}>true</{rule}>"
    for rule in ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
)


def error(status: int, code: str) -> tuple[int, str]:
    return status, f"<Error><Code>{code}</Code><Message>no</Message></Error>"


def policy_status(is_public: str) -> tuple[int, str]:
    return 200, f"<PolicyStatus><IsPublic>{is_public}</IsPublic></PolicyStatus>"


def acl(*grants: str) -> tuple[int, str]:
    owner = "<Owner><ID>me</ID></Owner>"
    return 200, (
        f'<AccessControlPolicy xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">{owner}'
        f"<AccessControlList>{''.join(grants)}</AccessControlList></AccessControlPolicy>"
    )


def grant(uri: str, permission: str) -> str:
    return (
        f'<Grant><Grantee xsi:type="Group"><URI>{uri}</URI></Grantee>'
        f"<Permission>{permission}</Permission></Grant>"
    )


class Bucket:
    """An S3 server that knows one bucket's rules: its answers to questions, and who may read objects."""

    def __init__(self) -> None:
        self.answers = {
            "publicAccessBlock": error(404, "NoSuchPublicAccessBlockConfiguration"),
            "policyStatus": error(404, "NoSuchBucketPolicy"),
            "acl": acl(),
        }
        self.anybody_reads = False
        self.objects: dict[str, bytes] = {}
        self.written: list[str] = []
        self.endpoint = ""

    def who_can_read(self) -> tuple[bool, str]:
        client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id="a",
            aws_secret_access_key="b", config=Config(retries={"max_attempts": 1}),
        )  # fmt: skip
        public, notes = who_can_read(client, "b", "p/")
        return public, "; ".join(notes)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    bucket = Bucket()

    class Handler(BaseHTTPRequestHandler):
        def log(self, status: int, text: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            name = query.partition("&")[0].rstrip("=")
            if name in bucket.answers:
                self.log(*bucket.answers[name])
            elif query:
                self.log(200, "<ListBucketResult/>")
            elif "Authorization" not in self.headers and not bucket.anybody_reads:
                self.log(*error(403, "AccessDenied"))
            else:
                self.log(200, bucket.objects[path].decode())

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            bucket.objects[self.path.partition("?")[0]] = data
            bucket.written.append(self.path)
            self.log(200)

        def do_DELETE(self) -> None:
            del bucket.objects[self.path.partition("?")[0]]
            self.log(204)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with serving(Handler) as bucket.endpoint:
        yield bucket


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_private_bucket_is_private_and_nothing_is_left_in_it(bucket: Bucket) -> None:
    public, notes = bucket.who_can_read()
    assert not public
    assert "reading without a key: refused (AccessDenied)" in notes
    assert "bucket policy: none" in notes
    assert [PROBE in name for name in bucket.written] == [True]
    assert bucket.objects == {}


def test_each_kind_of_evidence_alone_is_enough(bucket: Bucket) -> None:
    bucket.answers["policyStatus"] = policy_status("true")
    assert bucket.who_can_read()[0]
    bucket.answers["policyStatus"] = policy_status("false")
    assert not bucket.who_can_read()[0]
    bucket.answers["acl"] = acl(grant(ALL_USERS, "READ"))
    assert bucket.who_can_read()[0]
    bucket.answers["acl"] = acl(grant(ALL_USERS, "WRITE_ACP"))
    assert not bucket.who_can_read()[0]
    bucket.anybody_reads = True
    assert bucket.who_can_read()[0]


def test_a_public_access_block_makes_declarations_void_but_not_what_is_true(bucket: Bucket) -> None:
    bucket.answers["publicAccessBlock"] = (
        200,
        f"<PublicAccessBlockConfiguration>{BLOCKED}</PublicAccessBlockConfiguration>",
    )
    bucket.answers["policyStatus"] = policy_status("true")
    bucket.answers["acl"] = acl(grant(ALL_USERS, "READ"))
    assert not bucket.who_can_read()[0]
    bucket.anybody_reads = True
    assert bucket.who_can_read()[0]


@pytest.mark.parametrize(
    "answer", [error(501, "NotImplemented"), error(405, "MethodNotAllowed"), error(403, "AccessDenied")]
)
def test_where_a_server_does_not_say_reading_decides(bucket: Bucket, answer: tuple[int, str]) -> None:
    bucket.answers = dict.fromkeys(bucket.answers, answer)
    public, notes = bucket.who_can_read()
    assert not public
    assert notes.count("this server does not say") == 3
    bucket.anybody_reads = True
    assert bucket.who_can_read()[0]


@pytest.mark.slow
def test_a_build_refuses_a_public_bucket_before_it_writes(
    weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_private", set())
    client = weed.client()
    client.create_bucket(Bucket="open")
    client.put_bucket_policy(
        Bucket="open",
        Policy=json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Effect": "Allow",
                        "Principal": "*",
                        "Action": "s3:GetObject",
                        "Resource": "arn:aws:s3:::open/*",
                    }
                ],
            }
        ),
    )
    built: list[str] = []

    def build(*arguments: object) -> StageResult:
        built.append("once")
        return StageResult({})

    def run(url: str, **settings: object) -> None:
        profile = profile_of(store=settings)
        run_stage(open_store(url, client), profile, "manifest", "whole", build, quiet)

    with pytest.raises(PublicStore, match=r"s3://open/x: anybody can read.*store\.may_be_public") as caught:
        run("s3://open/x")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, StoreError)
    assert built == []
    assert "Contents" not in client.list_objects_v2(Bucket="open")
    run("s3://open/x", may_be_public=True)
    run(f"s3://{BUCKET}/private")
    assert built == ["once", "once"]
