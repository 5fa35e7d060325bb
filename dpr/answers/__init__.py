"""Typed answers of the service, which it makes and its clients read. They need pydantic alone."""
