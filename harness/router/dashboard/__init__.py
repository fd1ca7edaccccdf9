"""``/dashboard``: the router's state, live, on one page."""
