"""The page's seven sections: each turns a run into rows, without drawing and without HTML."""
