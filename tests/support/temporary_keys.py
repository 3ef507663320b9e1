"""Temporary keys with a session token, as the S3 server SeaweedFS hands them out for a role (AssumeRole)."""

import hashlib
import hmac
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx

from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server

ROLE = "arn:aws:iam::000000000000:role/worker"


def _statement(**fields: Any) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **fields}]}


IAM: dict[str, Any] = {
    "sts": {"issuer": "tests", "signingKey": "dGVzdHMtc2lnbi1zZXNzaW9uLXRva2Vucy13aXRoLXRoaXM="},
    "policy": {"defaultEffect": "Deny", "storeType": "memory"},
    "policies": [{"name": "objects", "document": _statement(Action=["s3:*"], Resource=["arn:aws:s3:::*"])}],
    "roles": [
        {
            "roleName": "worker",
            "roleArn": ROLE,
            "trustPolicy": _statement(Principal={"AWS": "*"}, Action=["sts:AssumeRole"]),
            "attachedPolicies": ["objects"],
        }
    ],
}
"""The server's file of roles."""


def temporary_keys(server: S3Server) -> dict[str, str]:
    """New keys of the role, for an hour: `AccessKeyId`, `SecretAccessKey`, `SessionToken` and `Expiration`."""
    fields = {"Action": "AssumeRole", "Version": "2011-06-15", "RoleArn": ROLE, "RoleSessionName": "tests"}
    body = urlencode(fields).encode()
    at = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "host": urlsplit(server.endpoint).netloc,
        "x-amz-content-sha256": hashlib.sha256(body).hexdigest(),
        "x-amz-date": at,
    }
    headers["authorization"] = _signature(headers, at)
    answer = httpx.post(server.endpoint, content=body, headers=headers, trust_env=False)
    assert answer.status_code == 200, answer.text
    found = {}
    for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"):
        said = re.search(f"<{name}>(.+?)</{name}>", answer.text)
        assert said is not None, answer.text
        found[name] = said[1]
    return found


def _signature(headers: dict[str, str], at: str) -> str:
    """The header that signs a POST of `/` at a time, by version 4."""
    names = ";".join(headers)
    told = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"POST\n/\n\n{told}\n{names}\n{headers['x-amz-content-sha256']}"
    scope = (at[:8], "us-east-1", "sts", "aws4_request")
    text = f"AWS4-HMAC-SHA256\n{at}\n{'/'.join(scope)}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{SECRET_KEY}".encode()
    for part in (*scope, text):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"{ACCESS_KEY}/{'/'.join(scope)}"
    return f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={key.hex()}"
