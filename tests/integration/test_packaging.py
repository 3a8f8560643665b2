"""What `pip install .` would install."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_the_two_packages_and_the_executable(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    # A copy, because a build writes into its source tree.
    for name in ("driver", "vmlib"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(CHECKOUT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        ".",
    ]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr

    (wheel,) = tmp_path.glob("chv-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        assert "chv = driver.main:main" in archive.read(entry_points).decode()
    installed = {name for name in names if ".dist-info/" not in name}
    sources = (path for top in ("driver", "vmlib") for path in (source / top).rglob("*.py*"))
    ours = {str(path.relative_to(source)) for path in sources if path.suffix in (".py", ".pyi")}
    assert installed == ours
