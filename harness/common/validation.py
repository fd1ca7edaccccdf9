"""What pydantic found wrong with a document, in one line."""

from pydantic import ValidationError


def first_error(error: ValidationError, *, root: str = "file") -> str:
    """The first error as ``key.path: message``; ``root`` names an error of the document as a whole."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or root
    return f"{where}: {first['msg']}"
