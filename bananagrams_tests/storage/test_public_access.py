"""A build does not write to a public bucket, unless its profile allows that."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from botocore.config import Config

from bananagrams_assets.graph import MANIFEST
from bananagrams_assets.progress import ignore_progress
from bananagrams_assets.stages import build
from bananagrams_assets.stages.build import PublicStore
from bananagrams_assets.stages.stage import UNPARTITIONED, StageResult, StageRun
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.public_access import PROBE, PublicAccess, check_public_access
from bananagrams_assets.storage.store import StoreError

from ..photos import profile_of
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
    """A bucket of a fake S3 server: its responses to configuration requests, and its objects."""

    def __init__(self) -> None:
        self.responses = {
            "publicAccessBlock": error(404, "NoSuchPublicAccessBlockConfiguration"),
            "policyStatus": error(404, "NoSuchBucketPolicy"),
            "acl": acl(),
        }
        self.is_readable = False
        self.objects: dict[str, bytes] = {}
        self.written: list[str] = []
        self.endpoint = ""

    def check(self) -> PublicAccess:
        client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id="a",
            aws_secret_access_key="b", config=Config(retries={"max_attempts": 1}),
        )  # fmt: skip
        return check_public_access(client, "b", "p/")

    def is_public(self) -> bool:
        return self.check().is_public


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    bucket = Bucket()

    class Handler(BaseHTTPRequestHandler):
        def respond(self, status: int, text: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            name = query.partition("&")[0].rstrip("=")
            if name in bucket.responses:
                self.respond(*bucket.responses[name])
            elif query:
                self.respond(200, "<ListBucketResult/>")
            elif "Authorization" not in self.headers and not bucket.is_readable:
                self.respond(*error(403, "AccessDenied"))
            else:
                self.respond(200, bucket.objects[path].decode())

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            bucket.objects[self.path.partition("?")[0]] = data
            bucket.written.append(self.path)
            self.respond(200)

        def do_DELETE(self) -> None:
            del bucket.objects[self.path.partition("?")[0]]
            self.respond(204)

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


def test_a_private_bucket_is_private_and_keeps_no_probe(bucket: Bucket) -> None:
    access = bucket.check()
    assert not access.is_public
    assert "reading without credentials: refused (AccessDenied)" in access.findings
    assert "bucket policy: none" in access.findings
    assert [PROBE in name for name in bucket.written] == [True]
    assert bucket.objects == {}


def test_each_kind_of_evidence_is_sufficient(bucket: Bucket) -> None:
    bucket.responses["policyStatus"] = policy_status("true")
    assert bucket.is_public()
    bucket.responses["policyStatus"] = policy_status("false")
    assert not bucket.is_public()
    bucket.responses["acl"] = acl(grant(ALL_USERS, "READ"))
    assert bucket.is_public()
    bucket.responses["acl"] = acl(grant(ALL_USERS, "WRITE_ACP"))
    assert not bucket.is_public()
    bucket.is_readable = True
    assert bucket.is_public()


def test_a_public_access_block_overrides_the_configuration_but_not_the_test(bucket: Bucket) -> None:
    bucket.responses["publicAccessBlock"] = (
        200,
        f"<PublicAccessBlockConfiguration>{BLOCKED}</PublicAccessBlockConfiguration>",
    )
    bucket.responses["policyStatus"] = policy_status("true")
    bucket.responses["acl"] = acl(grant(ALL_USERS, "READ"))
    assert not bucket.is_public()
    bucket.is_readable = True
    assert bucket.is_public()


@pytest.mark.parametrize(
    "response", [error(501, "NotImplemented"), error(405, "MethodNotAllowed"), error(403, "AccessDenied")]
)
def test_the_test_decides_if_the_configuration_is_not_available(
    bucket: Bucket, response: tuple[int, str]
) -> None:
    bucket.responses = dict.fromkeys(bucket.responses, response)
    access = bucket.check()
    assert not access.is_public
    assert sum("not available from this server" in finding for finding in access.findings) == 3
    bucket.is_readable = True
    assert bucket.is_public()


@pytest.mark.slow
def test_a_build_refuses_a_public_bucket_before_it_writes(
    weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_private_stores", set())
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

    def function(run: StageRun) -> StageResult:
        built.append("once")
        return StageResult({})

    stage = replace(MANIFEST, function=function, external=None)

    def run(url: str, **settings: object) -> None:
        profile = profile_of(store=settings)
        build.build_partition(open_store(url, client), profile, stage, UNPARTITIONED, ignore_progress)

    with pytest.raises(PublicStore, match=r"s3://open/x: anyone can read.*store\.may_be_public") as caught:
        run("s3://open/x")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, StoreError)
    assert built == []
    assert "Contents" not in client.list_objects_v2(Bucket="open")
    run("s3://open/x", may_be_public=True)
    run(f"s3://{BUCKET}/private")
    assert built == ["once", "once"]
