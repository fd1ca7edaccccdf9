"""What crosses a process: requests, plans, states, diagnoses and run records."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of every contract: an unknown key is an error, not a surprise later."""

    model_config = ConfigDict(extra="forbid")
