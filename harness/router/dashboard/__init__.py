"""``/dashboard``: what the router sees and does, live, on one page."""
