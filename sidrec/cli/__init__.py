"""Commands of sidrec: parsing, one-line errors, exit codes."""
