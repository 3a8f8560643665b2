"""The image cache: one of each content, made once however many want it, removed without harm to anybody."""

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vmlib.disk.cache import ImageCache, Recipe
from vmlib.errors import SpecError

KIB64 = 1 << 16


class Source:
    """A file that is unpacked by turning its bytes round; `made` counts how often."""

    def __init__(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.path = path
        self.made = 0

    def fill(self, source: int, target: int) -> str:
        self.made += 1
        os.write(target, os.pread(source, 1 << 20, 0)[::-1])
        return checksum(source)

    def get(self, cache: ImageCache, target: Path | None = None) -> Path:
        with self.path.open("rb") as file:
            name = cache.get(file.fileno(), recipe(self.fill), target, what="image")
        (path,) = (image.path for image in cache.images() if image.path.name == name)
        return path


def recipe(fill: Callable[[int, int], str]) -> Recipe:
    return Recipe(kind="raw", checksum=checksum, fill=fill)


def checksum(fd: int) -> str:
    return hashlib.sha256(os.pread(fd, 1 << 20, 0)).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache")


def test_an_image_is_made_once_and_found_again(cache: ImageCache, tmp_path: Path) -> None:
    source = Source(tmp_path / "a", b"abc")
    first = source.get(cache)
    assert first.read_bytes() == b"cba"
    assert source.get(cache) == first
    assert source.made == 1


def test_fifty_that_want_it_at_once_make_it_once(cache: ImageCache, tmp_path: Path) -> None:
    source = Source(tmp_path / "a", b"x" * KIB64)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(source.get(cache))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 50
    assert len(set(found)) == source.made == 1


def test_two_files_of_one_content_are_one_image(cache: ImageCache, tmp_path: Path) -> None:
    one, two = Source(tmp_path / "a", b"abc"), Source(tmp_path / "b", b"abc")
    assert one.get(cache) == two.get(cache)
    assert (one.made, two.made) == (1, 0)


def test_a_file_that_changed_is_another_image(cache: ImageCache, tmp_path: Path) -> None:
    source = Source(tmp_path / "a", b"abc")
    first = source.get(cache)
    source.path.write_bytes(b"abd")
    assert source.get(cache) != first
    assert source.made == 2


def test_a_failure_leaves_nothing_and_the_next_tries_again(cache: ImageCache, tmp_path: Path) -> None:
    source = Source(tmp_path / "a", b"abc")

    def broken(source_fd: int, target: int) -> str:
        os.write(target, b"half")
        raise SpecError("image: corrupt")

    fd = os.open(source.path, os.O_RDONLY)
    with pytest.raises(SpecError, match="corrupt"):
        cache.get(fd, recipe(broken), None, what="image")
    os.close(fd)
    assert list((tmp_path / "cache/images").iterdir()) == []
    assert source.get(cache).read_bytes() == b"cba"


def test_a_machine_keeps_its_image_when_the_cache_forgets_it(cache: ImageCache, tmp_path: Path) -> None:
    source = Source(tmp_path / "a", b"x" * KIB64)
    mine = tmp_path / "base.raw"
    image = source.get(cache, mine)
    assert mine.read_bytes() == b"x" * KIB64
    assert cache.collect(max_bytes=0, max_age_s=0, now=2e9) == []  # its room is taken anyway
    mine.unlink()
    assert cache.collect(max_bytes=0, max_age_s=1e12) == [image]
    assert list(cache.images()) == []
    assert list((tmp_path / "cache/seen").iterdir()) == list((tmp_path / "cache/locks").iterdir()) == []
    assert source.get(cache).exists()
    assert source.made == 2


def test_the_oldest_goes_first_and_only_as_many_as_must(cache: ImageCache, tmp_path: Path) -> None:
    images = []
    for number in range(4):
        images.append(Source(tmp_path / f"s{number}", bytes([number]) * KIB64).get(cache))
        os.utime(images[-1], (1000 + number, 1000 + number))
    assert cache.collect(max_bytes=2 * KIB64, max_age_s=1e12) == images[:2]
    assert cache.collect(max_bytes=1 << 40, max_age_s=10, now=1012.5) == [images[2]]
    assert [image.path for image in cache.images()] == images[3:]


def test_what_changes_while_it_is_read_is_never_kept_under_the_name_of_something_else(
    cache: ImageCache, tmp_path: Path
) -> None:
    source = Source(tmp_path / "a", b"abc")

    def swapped(source_fd: int, target: int) -> str:
        source.path.write_bytes(b"evil")
        return source.fill(source_fd, target)

    with source.path.open("rb") as file, pytest.raises(SpecError, match=r"image: changed while it was read"):
        cache.get(file.fileno(), recipe(swapped), None, what="image")
    assert list(cache.images()) == []
    assert Source(tmp_path / "b", b"abc").get(cache).read_bytes() == b"cba"


def test_what_somebody_left_who_was_killed_is_removed_and_what_is_being_made_is_not(
    cache: ImageCache, tmp_path: Path
) -> None:
    source = Source(tmp_path / "a", b"abc")
    image = source.get(cache)
    torn = image.parent / f".{'0' * 64}.raw.12345678"
    torn.write_bytes(b"half")

    def meanwhile(source_fd: int, target: int) -> str:
        before = sorted(image.parent.iterdir())
        cache.collect(max_bytes=1 << 40, max_age_s=1e12)
        assert sorted(image.parent.iterdir()) == [path for path in before if path != torn]
        return source.fill(source_fd, target)

    source.path.write_bytes(b"abd")
    with source.path.open("rb") as file:
        cache.get(file.fileno(), recipe(meanwhile), None, what="image")
    assert not torn.exists()


def test_a_dry_run_names_what_it_would_remove_and_removes_nothing(cache: ImageCache, tmp_path: Path) -> None:
    image = Source(tmp_path / "a", b"x" * KIB64).get(cache)
    assert cache.collect(max_bytes=0, max_age_s=0, dry_run=True) == [image]
    assert image.exists()
