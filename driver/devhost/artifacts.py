"""Artifacts of a task: local files and http(s) addresses, into the task's directory."""

import hashlib
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from driver.devhost.errors import ArtifactError
from driver.devhost.job import Artifact

_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1024 * 1024


def bring(artifact: Artifact, *, task_dir: Path, job_dir: Path) -> Path:
    """Returns where it is now. A local path is relative to the job file. Raises ArtifactError; blocks."""
    target = _target(artifact, task_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if artifact.source.startswith(("http://", "https://")):
            _download(artifact.source, target)
        else:
            source = job_dir / unquote(artifact.source.removeprefix("file://"))
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)
    except (OSError, urllib.error.URLError) as exc:
        raise ArtifactError(f"source = {artifact.source!r}: {exc}") from exc
    if checksum := artifact.options.get("checksum"):
        _check(target, checksum, artifact.source)
    return target


def _target(artifact: Artifact, task_dir: Path) -> Path:
    destination = (task_dir / artifact.destination.lstrip("/")).resolve()
    if not destination.is_relative_to(task_dir.resolve()):
        raise ArtifactError(f"destination = {artifact.destination!r}: leads out of the task's directory")
    if artifact.mode == "file":
        return destination
    name = Path(unquote(urlsplit(artifact.source).path)).name
    return destination / name if name else destination


def _download(address: str, target: Path) -> None:
    with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer, target.open("wb") as out:
        shutil.copyfileobj(answer, out, _CHUNK_BYTES)


def _check(path: Path, checksum: str, source: str) -> None:
    """`sha256:…`, `md5:…`, `sha1:…`, `sha512:…`."""
    kind, _, wanted = checksum.partition(":")
    if kind not in ("md5", "sha1", "sha256", "sha512") or not wanted:
        raise ArtifactError(f"checksum = {checksum!r}: expected one like sha256:…")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != wanted.lower():
        raise ArtifactError(f"source = {source!r}: its {kind} is {found}, expected {wanted}")
