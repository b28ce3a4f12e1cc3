"""``python -m sidrec`` is ``sidrec``."""

from sidrec.main import main

main()
