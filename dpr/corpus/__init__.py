"""Reading a corpus: planning slices, reading rows, splitting documents, finding what changed."""
