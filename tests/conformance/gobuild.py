"""Builds the Go programs of this directory on our `.proto` files, once for each state of their sources.

What protoc makes for Go is not in the tree: the module is put together in the cache, from the sources here and what
protoc made of `proto/` as its directory of the same name. Run as a program, it brings go.mod and go.sum up to date.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tests import needs

MODULE = Path(__file__).resolve().parent
PROTO = MODULE.parent.parent / "proto"
# go-plugin and gRPC bring their own of the others.
PROTO_FILES = tuple(f"chv/{name}.proto" for name in ("attribute", "base", "driver", "hclspec", "recoverable_error"))
GENERATORS = {
    "protoc-gen-go": "google.golang.org/protobuf/cmd/protoc-gen-go",
    "protoc-gen-go-grpc": "google.golang.org/grpc/cmd/protoc-gen-go-grpc",
}
_TEST = re.compile(r"^func (Test[A-Z]\w*)\(t \*testing\.T\)", re.MULTILINE)
_BUILD_TIMEOUT_S = 900


class BuildError(Exception):
    """A tool refused; the message is what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The programs of one state of the sources."""

    tests: Path  # a Go test binary
    encode: Path


def go_tests() -> list[str]:
    """The names of all Go tests, read from their sources without a compiler."""
    return [name for path in sorted(MODULE.glob("*_test.go")) for name in _TEST.findall(path.read_text())]


def ensure(go: Path, cache: Path) -> Programs:
    """Build, or find what was built from the same sources. Takes a minute or two on a machine that never did it."""
    made = cache / "conformance" / _key(go)
    if not made.is_dir():
        made.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="build-", dir=made.parent))
        try:
            _build(go, directory)
            # Somebody else may have built the same beside us: then theirs is as good.
            with contextlib.suppress(OSError):
                directory.rename(made)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return Programs(tests=made / "conformance.test", encode=made / "encode")


def _key(go: Path) -> str:
    version = _run([str(go), "env", "GOVERSION", "GOARCH"], cwd=MODULE)
    state = hashlib.sha256(version.encode())
    for path in [*sorted(_sources()), *(PROTO / name for name in PROTO_FILES), Path(__file__)]:
        data = path.read_bytes()
        state.update(f"{path.name} {len(data)}\n".encode() + data)
    return state.hexdigest()[:16]


def _sources() -> list[Path]:
    return [*MODULE.rglob("*.go"), MODULE / "go.mod", MODULE / "go.sum"]


def _build(go: Path, into: Path) -> None:
    module = _put_together(go, into)
    small = ["-trimpath", "-ldflags=-s -w"]
    _run([str(go), "build", "-buildvcs=false", *small, "-o", str(into / "encode"), "./encode"], cwd=module)
    _run([str(go), "test", "-c", *small, "-o", str(into / "conformance.test"), "."], cwd=module)
    _run([str(go), "vet", "./..."], cwd=module)
    for name in GENERATORS:
        (into / name).unlink()


def _put_together(go: Path, into: Path) -> Path:
    """The module with the code that is made from our `.proto` files."""
    module = into / "module"
    for source in _sources():
        copy = module / source.relative_to(MODULE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    for name, package in GENERATORS.items():
        _run([str(go), "build", "-buildvcs=false", "-o", str(into / name), package], cwd=module)
    _generate(into, module)
    return module


def _generate(generators: Path, module: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{files('grpc_tools') / '_proto'}"]
    for kind in ("go", "go-grpc"):
        name = f"protoc-gen-{kind}"
        command += [
            f"--plugin={name}={generators / name}",
            f"--{kind}_out={module}",
            f"--{kind}_opt=module=chv.invalid",
        ]
    _run([*command, *PROTO_FILES], cwd=PROTO)


def _run(command: list[str], *, cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "GOWORK": "off"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def tidy() -> None:
    """`go mod tidy`, which has to see the generated code. For a newer module: `go get MODULE@VERSION`, then this."""
    go = needs.find_go()
    if go is None:
        sys.exit("no go on PATH and none beside this Python")
    with tempfile.TemporaryDirectory() as directory:
        module = _put_together(go, Path(directory))
        _run([str(go), "mod", "tidy"], cwd=module)
        for name in ("go.mod", "go.sum"):
            shutil.copyfile(module / name, MODULE / name)


if __name__ == "__main__":
    tidy()
