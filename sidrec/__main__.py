"""Entry point of ``python -m sidrec``, the same as ``sidrec``."""

from sidrec.cli.main import main

main()
