"""What every stored record has in common."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of everything stored: an unknown key is an error, not a surprise later."""

    model_config = ConfigDict(extra="forbid")
