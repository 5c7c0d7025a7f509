"""A web page on which a trained network is tried out: its answers, the page, and the server of both."""
