"""Connect to a store by URL with obstore: choose the service, the credentials and the time limits."""

from __future__ import annotations

import base64
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from logitcache.errors import CacheNotFoundError, ConfigError, MissingDependencyError, OfflineError
from logitcache.stores.retry import RetryPolicy
from logitcache.stores.url import public_url

STATUS = re.compile(r"status code: (\d{3})")
#: logitcache retries itself, because it also retries when a body is cut off or altered.
_NO_RETRIES = {"max_retries": 0}


class _Process:
    """Whether this process was forked from one that used the network library; its threads don't exist in a fork."""

    used = False
    forked = False

    @classmethod
    def after_fork(cls) -> None:
        cls.forked = cls.used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Process.after_fork)


def is_forked() -> bool:
    """True in a forked process where any request would never end."""
    return _Process.forked


def is_offline() -> bool:
    """True if ``LOGITCACHE_OFFLINE`` forbids requests to stores."""
    return os.environ.get("LOGITCACHE_OFFLINE", "").lower() not in ("", "0", "false", "no")


def connect(url: str, policy: RetryPolicy, create: bool, request_seconds: float) -> Any:
    """An obstore store for a URL; a request may take ``request_seconds``. Raises what ``Store`` raises."""
    if is_offline():
        raise OfflineError(
            f"{public_url(url)}: offline mode asks no store; unset LOGITCACHE_OFFLINE, or leave out --offline"
        )
    try:
        from obstore import exceptions
        from obstore import store as stores
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{public_url(url)} needs the package obstore: pip install 'logitcache[remote]'"
        ) from error
    _Process.used = True
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=min(10.0, policy.stall)),
        "read_timeout": timedelta(seconds=policy.stall),
        "timeout": timedelta(seconds=request_seconds),
    }
    scheme = url.partition("://")[0]
    try:
        if scheme == "file":
            directory = Path(unquote(urlsplit(url).path))
            if not create and not directory.is_dir():
                raise CacheNotFoundError(f"{directory} does not exist")
            return stores.LocalStore(directory, mkdir=create)
        if scheme in ("http", "https"):
            return _http_store(*_http(url, client))
        if scheme == "hf":
            return _http_store(*_hugging_face(url, client))
        extra = _s3(client) if scheme == "s3" else {}
        from_url: Any = stores.from_url
        return from_url(url, client_options=client, retry_config=_NO_RETRIES, **extra)
    except (exceptions.BaseError, ValueError, OSError) as error:
        raise ConfigError(f"{public_url(url)} can't be used as a store: {short_reason(str(error))}") from error


def _http_store(url: str, client: dict[str, Any]) -> Any:
    from obstore.store import HTTPStore

    store: Any = HTTPStore
    return store.from_url(url, client_options=client, retry_config=_NO_RETRIES)


def _http(url: str, client: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    parts = urlsplit(url)
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        client = client | {"default_headers": {"Authorization": f"Basic {base64.b64encode(login).decode()}"}}
    return public_url(url), client | {"allow_http": parts.scheme == "http"}


def _hugging_face(url: str, client: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The HTTP URL of ``hf://datasets/OWNER/NAME/FOLDER`` on the hub, with the token that the hub's own tools use."""
    from huggingface_hub import constants, get_token

    match = re.fullmatch(r"hf://datasets/([^/]+/[^/]+)(/.*)?", url)
    if match is None:
        raise ConfigError(
            f"{public_url(url)}: a cache on the hub is hf://datasets/OWNER/NAME, perhaps with a folder after it"
        )
    token = get_token()
    if token:
        client = client | {"default_headers": {"Authorization": f"Bearer {token}"}}
    allow_http = {"allow_http": constants.ENDPOINT.startswith("http:")}
    return f"{constants.ENDPOINT}/datasets/{match[1]}/resolve/main{match[2] or ''}", client | allow_http


def _s3(client: dict[str, Any]) -> dict[str, Any]:
    """Settings from the environment, else credentials that boto3 finds if it is installed: profiles, SSO, roles."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    client["allow_http"] = endpoint.startswith("http:")
    config: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if "AWS_REGION" not in os.environ and "AWS_DEFAULT_REGION" not in os.environ:
        config["region"] = "us-east-1"
    provider = None if "AWS_ACCESS_KEY_ID" in os.environ else _boto3_credentials()
    if provider is not None:
        config |= provider.config
        return {"config": config, "credential_provider": provider}
    return {"config": config}


def _boto3_credentials() -> Any:
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return Boto3CredentialProvider()
    except (ImportError, ValueError):
        return None  # no boto3, or no credentials: obstore then tries the machine's own role


def short_reason(text: str) -> str:
    """The important part of obstore's message in one line, without its list of causes."""
    text = text.partition("Debug source")[0].strip()
    code = re.search(r"<Code>(.*?)</Code>", text)
    message = re.search(r"<Message>(.*?)</Message>", text)
    status = STATUS.search(text)
    if status:
        parts = [f"HTTP {status[1]}", code[1] if code else "", message[1] if message else ""]
        return " ".join(part for part in parts if part)[:300]
    # Our message has the address already; the reason comes after it.
    text = re.sub(r"^.*? in [0-9.]+\S*s - |^Generic \w+ error: ", "", text, flags=re.DOTALL)
    return " ".join(text.split())[:300] or "no answer"
