"""Where a job's paths lead: the task's directories, the operator's, a file server's; and nowhere else."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.config_plugin import PluginConfig
from driver.config_task import DiskConfig, TaskConfig
from tests.unit.job_tasks import ALLOC_DIR, TASK_DIR, a_plugin, refused, spec_of
from vmlib.errors import SpecError
from vmlib.spec import DiskFormat, FileRef, NfsExport, RootMode

WHERE = "expected a path in local/, secrets/ or alloc/ of the task, or beneath one of image_paths"


@pytest.mark.parametrize(
    ("path", "root", "relative"),
    [
        ("local/a.raw", TASK_DIR, "local/a.raw"),
        ("/local/a.raw", TASK_DIR, "local/a.raw"),
        ("//local//./a.raw", TASK_DIR, "local/a.raw"),
        ("/secrets/a.raw", TASK_DIR, "secrets/a.raw"),
        ("images/a.raw", TASK_DIR, "images/a.raw"),
        ("a..b/c.raw", TASK_DIR, "a..b/c.raw"),
        ("/alloc/data/a.raw", ALLOC_DIR / "alloc", "data/a.raw"),
        ("alloc/data/a.raw", ALLOC_DIR / "alloc", "data/a.raw"),
        ("/srv/images/deb/a.raw", Path("/srv/images"), "deb/a.raw"),
        ("/mnt/i/a.raw", Path("/mnt/i"), "a.raw"),
    ],
)
def test_a_path_leads_to_the_tasks_directories_or_the_operators(path: str, root: Path, relative: str) -> None:
    spec = spec_of(TaskConfig(image=path))
    assert spec.root is not None
    assert spec.root.image == FileRef(root=root, relative=relative)


def test_of_nested_image_paths_the_innermost_is_the_root() -> None:
    spec = spec_of(TaskConfig(image="/srv/images/b/a.raw"), a_plugin(image_paths=("/", "/srv/images/b", "/srv")))
    assert spec.root is not None
    assert spec.root.image == FileRef(root=Path("/srv/images/b"), relative="a.raw")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/etc/a.raw", f"image = '/etc/a.raw': {WHERE}: /srv/images, /mnt/i"),
        ("/srv/images2/a.raw", f"image = '/srv/images2/a.raw': {WHERE}: /srv/images, /mnt/i"),
        (f"{TASK_DIR}/local/a.raw", f"image = '{TASK_DIR}/local/a.raw': {WHERE}: /srv/images, /mnt/i"),
        ("../a.raw", "image = '../a.raw': expected a path without \"..\""),
        ("local/../../x", "image = 'local/../../x': expected a path without \"..\""),
        ("/srv/images/../x", "image = '/srv/images/../x': expected a path without \"..\""),
        ("/local/..", "image = '/local/..': expected a path without \"..\""),
    ],
)
def test_any_other_path_is_refused_with_what_is_allowed(path: str, complaint: str) -> None:
    assert refused(TaskConfig(image=path)) == complaint


def test_a_node_without_image_paths_says_so() -> None:
    assert refused(TaskConfig(image="/x/a.raw"), a_plugin(image_paths=())) == (
        f"image = '/x/a.raw': {WHERE} (this node has none)"
    )


@given(st.text(alphabet="a./lo\\ ", min_size=1, max_size=20))
def test_no_path_gets_out_of_its_root(path: str) -> None:
    try:
        spec = spec_of(TaskConfig(image=path))
    except SpecError:
        return
    assert spec.root is not None
    ref = spec.root.image
    assert ref.root in {TASK_DIR, ALLOC_DIR / "alloc", Path("/srv/images"), Path("/mnt/i")}
    assert not ref.relative.startswith("/")
    assert ".." not in ref.relative.split("/")


@pytest.mark.parametrize(
    ("words", "firmware"),
    [
        ("", ""),
        ("bios", "bios"),
        ("uefi", "uefi"),
        ("./uefi", FileRef(root=TASK_DIR, relative="uefi")),
        ("local/x.fd", FileRef(root=TASK_DIR, relative="local/x.fd")),
        ("/srv/images/x.fd", FileRef(root=Path("/srv/images"), relative="x.fd")),
    ],
)
def test_firmware_is_a_word_or_a_path_like_any_other(words: str, firmware: str | FileRef) -> None:
    assert spec_of(TaskConfig(image="local/i.raw", firmware=words)).firmware == firmware


def test_no_tool_grows_a_qcow2_image_that_the_job_can_write_to_meanwhile() -> None:
    def grown(image: str, image_format: DiskFormat, mode: RootMode = "direct") -> TaskConfig:
        return TaskConfig(image=image, image_format=image_format, root_mode=mode, root_size_bytes=1 << 30)

    for image in ("local/i.qcow2", "alloc/i.qcow2"):
        assert refused(grown(image, "qcow2")).startswith(
            "root_size = 1073741824: a qcow2 image in the task's directories"
        )
    for fine in (
        grown("/srv/images/i.qcow2", "qcow2"),
        grown("local/i.raw", "raw"),
        grown("local/i.qcow2", "qcow2", "copy"),
    ):
        assert spec_of(fine).root is not None


def test_firmware_of_elsewhere_is_refused() -> None:
    assert refused(TaskConfig(image="local/i.raw", firmware="/usr/share/x.fd")).startswith(
        "firmware = '/usr/share/x.fd': expected a path in local/, secrets/ or alloc/ of the task"
    )


# -- file servers ----------------------------------------------------------------------------------------------------

VMS = NfsExport(name="vms", server="10.0.0.5", export="/srv/vms")


def with_nfs(*exports: NfsExport) -> PluginConfig:
    return replace(a_plugin(), nfs={export.name: export for export in exports})


@pytest.mark.parametrize(
    ("path", "relative"), [("nfs://vms/a.raw", "a.raw"), ("nfs://vms//deep/./a.raw", "deep/a.raw")]
)
def test_a_path_on_a_file_server_is_told_by_the_operators_name_for_it(path: str, relative: str) -> None:
    options = TaskConfig(
        image=path, firmware=path, user_data=path, disks=(DiskConfig(name="d", format="raw", source=path),)
    )
    spec = spec_of(options, with_nfs(VMS))
    expected = FileRef(root=Path("/"), relative=relative, nfs=VMS)
    assert spec.root is not None
    assert spec.seed is not None
    assert [spec.root.image, spec.firmware, spec.seed.user_data_file, spec.disks[0].source] == [expected] * 4
    booted = spec_of(TaskConfig(kernel=path, initrd=path), with_nfs(VMS)).boot
    assert booted is not None
    assert [booted.kernel, booted.initrd] == [expected] * 2


@pytest.mark.parametrize(
    ("path", "plugin", "words"),
    [
        ("nfs://x/a.raw", with_nfs(VMS), "expected an nfs block of this node's plugin block, which are: vms"),
        ("nfs://x/a.raw", with_nfs(), "expected an nfs block of this node's plugin block, of which there are none"),
        ("nfs://vms/../a.raw", with_nfs(VMS), 'expected a path without ".."'),
        ("nfs://vms/", with_nfs(VMS), "expected a file, as in nfs://NAME/path"),
        ("nfs://vms", with_nfs(VMS), "expected a file, as in nfs://NAME/path"),
    ],
)
def test_a_path_on_a_file_server_that_cannot_be_is_refused(path: str, plugin: PluginConfig, words: str) -> None:
    assert refused(TaskConfig(kernel=path), plugin) == f"kernel = {path!r}: {words}"
