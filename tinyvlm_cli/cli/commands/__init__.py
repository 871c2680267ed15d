"""One module for each command; a module is imported only when its command runs."""
