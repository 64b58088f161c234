"""The command line: ``python -m prefactor_core``."""

from __future__ import annotations

import sys

try:
    from prefactor_core.cli.main import main
except ImportError as error:
    sys.exit(
        f"the command line needs the extra 'local' of this package ({error}): "
        "pip install '.[local]' in its folder"
    )

if __name__ == "__main__":
    main(prog_name="python -m prefactor_core")
