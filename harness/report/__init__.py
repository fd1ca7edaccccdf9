"""Tables, figures and the one HTML file."""
