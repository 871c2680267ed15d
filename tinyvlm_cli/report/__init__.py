"""Tables and figures from the results folder."""
