"""Measuring retrieval: questions, answer matching, accuracy."""
