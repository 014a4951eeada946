"""Check whether a bucket is public, that is, readable without credentials.

Data derived from most sources must not be redistributed, so a build runs this check before it writes. A
bucket is public if either kind of evidence says so:

- its configuration: the bucket's policy status or its access control list (ACL), unless the bucket's public
  access block overrides both;
- a test: a small object is written under the store's own prefix, read without credentials, and deleted.

If the server does not implement one of the configuration requests (NotImplemented, MethodNotAllowed) or
denies it to our key (AccessDenied), the remaining checks decide. The test always runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

PROBE = ".tmp-probe-"
_PUBLIC_GROUPS = (
    "http://acs.amazonaws.com/groups/global/AllUsers",
    "http://acs.amazonaws.com/groups/global/AuthenticatedUsers",
)
_ABANDONED_S = 3600.0
_NOT_CONFIGURED = {"NoSuchBucketPolicy", "NoSuchPublicAccessBlockConfiguration"}
_UNAVAILABLE = {
    "NotImplemented", "MethodNotAllowed", "AccessDenied", "AllAccessDisabled", "UnsupportedOperation", "501",
    "405", "403", "400", "InvalidRequest", "InvalidArgument",
}  # fmt: skip


@dataclass(frozen=True)
class PublicAccess:
    """Whether a store is public, and one line per check with its result."""

    is_public: bool
    findings: Sequence[str]


def check_public_access(client: Any, bucket: str, prefix: str) -> PublicAccess:
    """Check objects under `prefix` of a bucket.

    Raises botocore's exceptions for errors other than an unavailable configuration request.
    """
    block, block_finding = _configuration(client, "get_public_access_block", bucket)
    rules = (block or {}).get("PublicAccessBlockConfiguration", {})
    overridden = bool(rules.get("IgnorePublicAcls") and rules.get("RestrictPublicBuckets"))
    if overridden:
        block_finding = "overrides public policies and ACLs"
    policy, policy_finding = _configuration(client, "get_bucket_policy_status", bucket)
    by_policy = bool(policy and policy.get("PolicyStatus", {}).get("IsPublic"))
    if policy is not None:
        policy_finding = "public" if by_policy else "not public"
    acl, acl_finding = _configuration(client, "get_bucket_acl", bucket)
    granted = sorted(
        {
            grant["Permission"]
            for grant in (acl or {}).get("Grants", [])
            if grant.get("Grantee", {}).get("URI") in _PUBLIC_GROUPS
            and grant.get("Permission") in ("READ", "FULL_CONTROL")
        }
    )
    if acl is not None:
        acl_finding = f"grants {' and '.join(granted) or 'nothing'} to everybody"
    readable, read_finding = _read_without_credentials(client, bucket, prefix)
    findings = [
        f"public access block: {block_finding}",
        f"bucket policy: {policy_finding}",
        f"access control list: {acl_finding}",
        f"reading without credentials: {read_finding}",
    ]
    return PublicAccess(readable or (not overridden and (by_policy or bool(granted))), findings)


def _configuration(client: Any, operation: str, bucket: str) -> tuple[dict[str, Any] | None, str]:
    """Return (response, finding) of one request; the response is None if it is not set or not available."""
    from botocore.exceptions import ClientError

    try:
        return getattr(client, operation)(Bucket=bucket), "set"
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _NOT_CONFIGURED:
            return None, "none"
        if code in _UNAVAILABLE:
            return None, f"not available from this server ({code})"
        raise


def _read_without_credentials(client: Any, bucket: str, prefix: str) -> tuple[bool, str]:
    """Return (whether an object can be read without credentials, finding)."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import ClientError

    meta = client.meta
    unsigned = boto3.client(
        "s3", endpoint_url=meta.endpoint_url, region_name=meta.region_name,
        config=meta.config.merge(Config(signature_version=UNSIGNED)),
    )  # fmt: skip
    _delete_abandoned_probes(client, bucket, prefix)
    key = f"{prefix}{PROBE}{secrets.token_hex(8)}"
    client.put_object(Bucket=bucket, Key=key, Body=b"bananagrams checks whether this bucket is public\n")
    try:
        unsigned.get_object(Bucket=bucket, Key=key)["Body"].close()
    except ClientError as error:
        return False, f"refused ({error.response.get('Error', {}).get('Code', '')})"
    finally:
        client.delete_object(Bucket=bucket, Key=key)
    return True, "allowed"


def _delete_abandoned_probes(client: Any, bucket: str, prefix: str) -> None:
    """Delete the test objects of killed runs."""
    now = datetime.now(timezone.utc)
    for item in client.list_objects_v2(Bucket=bucket, Prefix=prefix + PROBE).get("Contents", []):
        if (now - item["LastModified"]).total_seconds() > _ABANDONED_S:
            client.delete_object(Bucket=bucket, Key=item["Key"])
