"""What each node samples once a second; imports nothing of the harness but this folder."""
