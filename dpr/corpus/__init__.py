"""Reading a corpus: planning slices, reading rows, splitting documents, comparing hashes."""
