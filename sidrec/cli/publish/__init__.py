"""Commands that give a finished run to other programs."""
