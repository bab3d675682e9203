"""A trained marketplace as tests use it, and the contract that every answer over HTTP is held against."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from jsonschema import Draft202012Validator

from deployment.http.api import create_app
from domains.events.domain_data import DomainData
from domains.registry.registry import Registry
from feature_repo.online import OnlineFeatures, UserFeatures
from orchestrator.data.online import feature_repo
from orchestrator.settings import Settings

LEFT_OUT = "reading"
"""A target that is registered and has data, and that no training has seen."""


@dataclass
class Market:
    """One home folder with a trained marketplace."""

    settings: Settings

    @property
    def registry(self) -> Registry:
        return Registry(self.settings.registry_url)

    def data(self, name: str) -> DomainData:
        return DomainData(self.settings.data_dir, name)

    def items(self, name: str, most: int = 20) -> list[str]:
        return self.data(name).item_vocabulary.names().to_pylist()[:most]

    def user(self) -> str:
        return self.data("live").interactions()["user_id"][0].as_py()

    def read(self, user_id: str) -> UserFeatures:
        """What the online store holds of a user now, with the recent events in `live`."""
        read = OnlineFeatures(feature_repo(self.settings)).read_user(user_id, "live")
        assert read is not None
        return read

    def set_live(self, name: str, version_id: str) -> None:
        live = self.registry.live(name)
        expect = live.version_id if live else None
        self.registry.promote(name, version_id, expect=expect, who="tests", why="a test")

    def versions(self, name: str = "live") -> dict[str, str]:
        return {version.level: version.id for version in self.registry.versions(name, "adapter")}


def ask(client: httpx.Client, user: str, items: list[str], domain: str = "live", **more: object) -> httpx.Response:
    body = {"user_id": user, "items": [{"item_id": item} for item in items], **more}
    return client.post(f"/v1/domains/{domain}/rank", json=body)


def eventually(what: Callable[[], bool], timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.02)


def with_one_bit_turned(good: bytes) -> bytes:
    return good[:-1] + bytes([good[-1] ^ 1])


def assert_is_error(answer: httpx.Response, status: int, code: str) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert set(error) <= {"code", "message", "field", "details"}
    return error


class Contract:
    """What /openapi.json declares; called with an answer, it fails where the answer is anything else.

    An error that no operation declares, as it hits none (an unknown path, a wrong method), has the shape of all errors.
    """

    def __init__(self) -> None:
        self.declared = create_app(lambda: None).openapi()
        self._paths = {
            re.compile(re.sub(r"{\w+}", "[^/]+", path)): operations
            for path, operations in self.declared["paths"].items()
        }

    def __call__(self, answer: httpx.Response) -> None:
        path = answer.request.url.path
        if not path.startswith("/v1/"):
            return
        answer.read()
        operations = next((found for pattern, found in self._paths.items() if pattern.fullmatch(path)), {})
        operation = operations.get("get" if answer.request.method == "HEAD" else answer.request.method.lower())
        if operation is not None:
            declared = operation["responses"].get(str(answer.status_code))
            assert declared is not None, f"{answer.status_code} is not declared"
            schema = declared["content"]["application/json"]["schema"]
        else:
            assert answer.status_code in (404, 405)
            schema = {"$ref": "#/components/schemas/ErrorAnswer"}
        if answer.request.method == "HEAD":
            assert not answer.content
            return
        whole = {**schema, "components": self.declared["components"]}
        problems = [
            f"{error.json_path}: {error.message}" for error in Draft202012Validator(whole).iter_errors(answer.json())
        ]
        assert not problems, (path, problems)


CONTRACT = Contract()
