"""The demo: a corpus made of Python's own documentation, a recipe, questions, and a program that shows a whole run."""
