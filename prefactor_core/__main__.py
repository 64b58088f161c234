"""The command line: ``python -m prefactor_core``."""

from __future__ import annotations

try:
    from prefactor_core.cli.main import main
except ImportError as error:
    from prefactor_core.cli import bare

    bare.main(error)

if __name__ == "__main__":
    main(prog_name="python -m prefactor_core")
