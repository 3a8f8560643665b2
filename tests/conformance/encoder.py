"""Asks the Go program `encode`, which answers with the real HCL libraries."""

import base64
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import Message


class Encoder:
    """One running program; a question and its answer are a line each."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def close(self) -> None:
        self._process.communicate(timeout=10)

    def of_json(self, spec: Message, body: Mapping[str, Any], variables: Mapping[str, Any] | None = None) -> bytes:
        """The MessagePack of a body in JSON form. Raises RefusedError."""
        return self._packed({"spec": spec, "json": json.dumps(body), "variables": variables})

    def of_hcl(self, spec: Message, body: str, variables: Mapping[str, Any] | None = None) -> bytes:
        """The same for a body as it stands in a job file."""
        return self._packed({"spec": spec, "hcl": body, "variables": variables})

    def tree(self, text: str) -> dict[str, Any]:
        """A whole job file, blocks as lists of objects, labels as keys around them."""
        tree: dict[str, Any] = self._ask({"job": text}).get("tree", {})
        return tree

    def agent_tree(self, text: str) -> dict[str, Any]:
        """A whole agent file, which is HCL1."""
        tree: dict[str, Any] = self._ask({"agent": text}).get("tree", {})
        return tree

    def _packed(self, question: dict[str, Any]) -> bytes:
        return bytes.fromhex(self._ask(question)["msgpack"])

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        sent = {key: _plain(value) for key, value in question.items() if value is not None}
        self._process.stdin.write(json.dumps(sent) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "complaints" in answer:
            raise RefusedError(answer["complaints"])
        return answer


class RefusedError(Exception):
    """The real libraries complain; each complaint as `summary: detail`."""

    def __init__(self, complaints: list[str]) -> None:
        super().__init__("; ".join(complaints))
        self.complaints = complaints


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return base64.b64encode(value.SerializeToString(deterministic=True)).decode()
    return value
