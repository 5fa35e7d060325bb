"""Everything that knows FAISS: choosing, training, building, merging, searching, exact truth and tuning."""
