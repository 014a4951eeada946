"""Whether a bucket is one that anybody at all can read.

Derived data of most sources must not be passed on, so a build asks before it writes. Two kinds of
evidence count, and either is enough to call a bucket public:

- what is declared: the bucket's policy status and its access control list, unless the bucket's public
  access block makes both void;
- what is true: a harmless object is written under the store's own prefix, read without any key, and
  removed.

A server that does not know a question (NotImplemented, MethodNotAllowed), or does not let our key ask it
(AccessDenied), leaves that question open, and the others decide; the reading without a key is always done.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

PROBE = ".tmp-probe-"
_ANYBODY = (
    "http://acs.amazonaws.com/groups/global/AllUsers",
    "http://acs.amazonaws.com/groups/global/AuthenticatedUsers",
)
_ABANDONED_S = 3600.0
_NOT_SET = {"NoSuchBucketPolicy", "NoSuchPublicAccessBlockConfiguration"}
_OPEN = {
    "NotImplemented", "MethodNotAllowed", "AccessDenied", "AllAccessDisabled", "UnsupportedOperation", "501",
    "405", "403", "400", "InvalidRequest", "InvalidArgument",
}  # fmt: skip


def who_can_read(client: Any, bucket: str, prefix: str) -> tuple[bool, Sequence[str]]:
    """(anybody can read, what was found out about each question) for objects under `prefix` of a bucket.

    Raises botocore's errors for what is wrong beyond these questions.
    """
    block, blocked = _ask(client, "get_public_access_block", bucket)
    if block is not None:
        rules = block.get("PublicAccessBlockConfiguration", {})
        if rules.get("IgnorePublicAcls") and rules.get("RestrictPublicBuckets"):
            blocked = "makes public policies and lists void"
    policy, policy_says = _ask(client, "get_bucket_policy_status", bucket)
    by_policy = bool(policy and policy.get("PolicyStatus", {}).get("IsPublic"))
    if policy is not None:
        policy_says = "public" if by_policy else "not public"
    acl, acl_says = _ask(client, "get_bucket_acl", bucket)
    granted = sorted(
        {
            grant["Permission"]
            for grant in (acl or {}).get("Grants", [])
            if grant.get("Grantee", {}).get("URI") in _ANYBODY
            and grant.get("Permission") in ("READ", "FULL_CONTROL")
        }
    )
    if acl is not None:
        acl_says = f"grants {' and '.join(granted)} to anybody" if granted else "grants nothing to anybody"
    void = blocked == "makes public policies and lists void"
    read, reading = _read_without_key(client, bucket, prefix)
    notes = [
        f"public access block: {blocked}",
        f"bucket policy: {policy_says}",
        f"access control list: {acl_says}",
        f"reading without a key: {reading}",
    ]
    return read or (not void and (by_policy or bool(granted))), notes


def _ask(client: Any, operation: str, bucket: str) -> tuple[dict[str, Any] | None, str]:
    from botocore.exceptions import ClientError

    try:
        return getattr(client, operation)(Bucket=bucket), "set"
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _NOT_SET:
            return None, "none"
        if code in _OPEN:
            return None, f"this server does not say ({code})"
        raise


def _read_without_key(client: Any, bucket: str, prefix: str) -> tuple[bool, str]:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import ClientError

    meta = client.meta
    nobody = boto3.client(
        "s3", endpoint_url=meta.endpoint_url, region_name=meta.region_name,
        config=meta.config.merge(Config(signature_version=UNSIGNED)),
    )  # fmt: skip
    _sweep(client, bucket, prefix)
    key = f"{prefix}{PROBE}{secrets.token_hex(8)}"
    client.put_object(Bucket=bucket, Key=key, Body=b"bananagrams asks whether anybody can read here\n")
    try:
        nobody.get_object(Bucket=bucket, Key=key)["Body"].close()
    except ClientError as error:
        return False, f"refused ({error.response.get('Error', {}).get('Code', '')})"
    finally:
        client.delete_object(Bucket=bucket, Key=key)
    return True, "allowed"


def _sweep(client: Any, bucket: str, prefix: str) -> None:
    """Remove the objects that killed runs have left of this question."""
    now = datetime.now(timezone.utc)
    for item in client.list_objects_v2(Bucket=bucket, Prefix=prefix + PROBE).get("Contents", []):
        if (now - item["LastModified"]).total_seconds() > _ABANDONED_S:
            client.delete_object(Bucket=bucket, Key=item["Key"])
