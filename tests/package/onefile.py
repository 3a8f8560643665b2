"""The one-file executable: an archive that unpacks itself once for each release and user, by pex.

Unpacked it has to be, because neither compiled modules nor the scripts of keepers can be used from within an archive.
"""

import sys
from pathlib import Path

from tests.package.tree import PYTHON, run

# Not in a home directory: an agent's may be anything. Who cannot write there gets a temporary directory.
UNPACKED = "/var/cache/chv"


def build_onefile(tree: Path, target: Path, *, unpacked: str = UNPACKED) -> None:
    """Write the executable. `tree` is what `make_tree` made."""
    run(
        *(sys.executable, "-m", "pex", f"--sources-directory={tree}", "--entry-point=driver.main:main"),
        *("--python-shebang=/usr/bin/env python3", f"--interpreter-constraint=CPython=={PYTHON}.*"),
        *(f"--runtime-pex-root={unpacked}", "--no-compile", f"--output-file={target}"),
        "--no-strip-pex-env",  # PEX_ROOT of `chv dev` is its plugin's as well
    )
    target.chmod(0o755)
