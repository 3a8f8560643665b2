"""How this very executable is started again."""

import os
import sys
from pathlib import Path


def this_command() -> list[str]:
    ours = Path(sys.argv[0]).absolute()
    if ours.is_file() and os.access(ours, os.X_OK) and ours.suffix not in (".py", ".pyc"):
        return [str(ours)]
    # Called from Python: there is no executable to start again.
    return [sys.executable, "-c", "import sys; from driver.main import main; sys.exit(main())"]
