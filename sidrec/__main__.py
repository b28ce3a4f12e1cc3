"""``python -m sidrec`` is ``sidrec``."""

from sidrec.cli.main import main

main()
