"""Arguments of `sidrec prepare` -> a corpus, one parser per source."""
